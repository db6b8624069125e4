//! Asks a STUN server at which address it sees a connection: the Binding request of RFC 8489, over TCP.
//!
//! The answer is a hint from a server that may lie, so everything about it is bounded: its size, its time, and what it can
//! cause, because the address goes through the same checks as any other candidate.

use std::{fmt, io, net::SocketAddr, time::Duration};

use stun_types::{
    attribute::{Attribute, AttributeType, ErrorCode, XorMappedAddress},
    message::{
        BINDING, Message, MessageClass, MessageHeader, MessageType, MessageWrite, MessageWriteVec,
        TransactionId,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// How long a server may take, connecting included. The relay carries the stream meanwhile.
const ANSWER: Duration = Duration::from_millis(1500);
/// The longest answer that is read, in bytes without the header. Usual ones have about 100.
const LONGEST: u16 = 548;
/// The attributes that a client has to understand (RFC 8489, 18.3), of which a success response may have some. Those up to
/// 0x000B include the ones that RFC 3489 had, which old servers still send.
const UNDERSTOOD: [u16; 16] = [
    0x0001, 0x0002, 0x0003, 0x0004, 0x0005, 0x0006, 0x0007, 0x0008, 0x0009, 0x000A, 0x000B, 0x0014,
    0x0015, 0x001C, 0x001D, 0x0020,
];

/// What is wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StunError {
    /// It is not STUN, or is malformed.
    Malformed,
    /// It answers another request.
    NotOurs,
    /// It is longer than any that is needed.
    Long(u16),
    /// The server refuses, with this code.
    Refused(Option<u16>),
    /// It has no mapped address.
    NoAddress,
    /// It has an attribute that must be understood, and is not.
    Unknown(u16),
}

impl fmt::Display for StunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => f.write_str("the answer is not STUN"),
            Self::NotOurs => f.write_str("the answer is to another request"),
            Self::Long(length) => write!(f, "the answer is too long: {length} bytes"),
            Self::Refused(Some(code)) => write!(f, "the server refuses with code {code}"),
            Self::Refused(None) => f.write_str("the server refuses"),
            Self::NoAddress => f.write_str("the answer has no address"),
            Self::Unknown(kind) => {
                write!(
                    f,
                    "the answer has the unknown attribute {kind:#06x}, which must be understood"
                )
            }
        }
    }
}

impl std::error::Error for StunError {}

/// One request on a connection of its own.
#[derive(Debug)]
pub(super) struct Binding {
    id: TransactionId,
    received: Vec<u8>,
}

impl Binding {
    /// Begins a request. The id must be random and new: the answer is recognized by it.
    pub(super) fn new(id: u128) -> Self {
        Self { id: id.into(), received: Vec::new() }
    }

    /// Returns the bytes to send.
    pub(super) fn request(&self) -> Vec<u8> {
        let kind = MessageType::from_class_method(MessageClass::Request, BINDING);
        Message::builder(kind, self.id, MessageWriteVec::new()).finish()
    }

    /// Returns how many bytes of the answer are missing at least. On TCP, a message ends where its header says (RFC 8489, 6.2.2).
    pub(super) fn missing(&self) -> usize {
        self.length().unwrap_or(MessageHeader::LENGTH).saturating_sub(self.received.len())
    }

    fn length(&self) -> Option<usize> {
        let header = MessageHeader::from_bytes(&self.received).ok()?;
        Some(MessageHeader::LENGTH + usize::from(header.data_length()))
    }

    /// Takes received bytes; returns the address when the answer is whole. What follows the answer is dropped.
    ///
    /// # Errors
    /// [`StunError`]; the connection is of no use any more.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<Option<SocketAddr>, StunError> {
        let mut rest = bytes;
        loop {
            // The header first: it says whether the rest is worth its memory.
            let (now, later) = rest.split_at(self.missing().min(rest.len()));
            self.received.extend(now);
            rest = later;
            let found = self.read()?;
            if found.is_some() || rest.is_empty() {
                return Ok(found);
            }
        }
    }

    fn read(&self) -> Result<Option<SocketAddr>, StunError> {
        if self.received.len() < MessageHeader::LENGTH {
            return Ok(None);
        }
        let header = MessageHeader::from_bytes(&self.received).map_err(|_| StunError::Malformed)?;
        if header.data_length() > LONGEST {
            return Err(StunError::Long(header.data_length()));
        }
        if header.transaction_id() != self.id || header.get_type().method() != BINDING {
            return Err(StunError::NotOurs);
        }
        if self.missing() > 0 {
            return Ok(None);
        }
        let answer = Message::from_bytes(&self.received).map_err(|_| StunError::Malformed)?;
        match answer.class() {
            MessageClass::Success => {}
            MessageClass::Error => {
                let code = answer.attribute::<ErrorCode>().ok().map(|error| error.code());
                return Err(StunError::Refused(code));
            }
            MessageClass::Request | MessageClass::Indication => return Err(StunError::NotOurs),
        }
        let unknown = answer.iter_attributes().map(|(_, attribute)| attribute.get_type()).find(
            |kind: &AttributeType| {
                kind.comprehension_required() && !UNDERSTOOD.contains(&kind.value())
            },
        );
        if let Some(kind) = unknown {
            return Err(StunError::Unknown(kind.value()));
        }
        let mapped = answer.attribute::<XorMappedAddress>().map_err(|_| StunError::NoAddress)?;
        Ok(Some(mapped.addr(self.id)))
    }
}

/// Asks over a connection that `connecting` makes. Returns the connection, which keeps the mapping of a NAT, and the address at
/// which the server sees it.
///
/// # Errors
/// Those of connecting; [`StunError`]; or if the server is too slow.
pub(super) async fn ask(
    connecting: impl Future<Output = io::Result<TcpStream>>,
) -> io::Result<(TcpStream, SocketAddr)> {
    let asking = async {
        let mut stream = connecting.await?;
        let mut binding = Binding::new(rand::random());
        stream.write_all(&binding.request()).await?;
        let mut buffer = [0; MessageHeader::LENGTH + LONGEST as usize];
        loop {
            let missing = binding.missing().min(buffer.len());
            let got = stream.read(&mut buffer[..missing]).await?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(address) = binding.take(&buffer[..got]).map_err(io::Error::other)? {
                return Ok((stream, address));
            }
        }
    };
    timeout(ANSWER, asking).await.map_err(|_| io::ErrorKind::TimedOut)?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::net::TcpListener;

    use super::*;

    const ID: u128 = 0xb7e7_a701_bc34_d686_fa87_dfae;
    /// RFC 5769, section 2.2: an answer with the address 192.0.2.1:32853.
    const VECTOR: [u8; 80] = [
        0x01, 0x01, 0x00, 0x3c, 0x21, 0x12, 0xa4, 0x42, 0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6,
        0x86, 0xfa, 0x87, 0xdf, 0xae, 0x80, 0x22, 0x00, 0x0b, 0x74, 0x65, 0x73, 0x74, 0x20, 0x76,
        0x65, 0x63, 0x74, 0x6f, 0x72, 0x20, 0x00, 0x20, 0x00, 0x08, 0x00, 0x01, 0xa1, 0x47, 0xe1,
        0x12, 0xa6, 0x43, 0x00, 0x08, 0x00, 0x14, 0x2b, 0x91, 0xf5, 0x99, 0xfd, 0x9e, 0x90, 0xc3,
        0x8c, 0x74, 0x89, 0xf9, 0x2a, 0xf9, 0xba, 0x53, 0xf0, 0x6b, 0xe7, 0xd7, 0x80, 0x28, 0x00,
        0x04, 0xc0, 0x7d, 0x4c, 0x96,
    ];

    /// Returns an answer of this type with these attributes.
    fn answer(kind: u16, id: u128, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (number, value) in attributes {
            body.extend(number.to_be_bytes());
            body.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut bytes = kind.to_be_bytes().to_vec();
        bytes.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        bytes.extend([0x21, 0x12, 0xa4, 0x42]);
        bytes.extend(&id.to_be_bytes()[4..]);
        bytes.extend(body);
        bytes
    }

    const MAPPED: &[u8] = &[0, 1, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43];

    fn take(bytes: &[u8]) -> Result<Option<SocketAddr>, StunError> {
        Binding::new(ID).take(bytes)
    }

    #[test]
    fn the_request_is_a_bare_header() {
        let expected = answer(0x0001, ID, &[]);
        assert_eq!(Binding::new(ID).request(), expected);
        assert_eq!(expected.len(), 20);
    }

    #[test]
    fn the_answer_of_the_rfc_is_read_in_any_pieces() {
        for size in 1..=VECTOR.len() {
            let mut binding = Binding::new(ID);
            let mut found = None;
            let mut rest = &VECTOR[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(size.min(binding.missing()).min(rest.len()));
                assert_eq!(found, None);
                found = binding.take(now).unwrap();
                rest = later;
            }
            assert_eq!(found, Some("192.0.2.1:32853".parse().unwrap()), "pieces of {size}");
            assert_eq!(binding.missing(), 0);
        }
    }

    #[test]
    fn an_ipv6_address_is_read() {
        // RFC 5769, section 2.3.
        let mapped = [
            0, 2, 0xa1, 0x47, 0x01, 0x13, 0xa9, 0xfa, 0xa5, 0xd3, 0xf1, 0x79, 0xbc, 0x25, 0xf4,
            0xb5, 0xbe, 0xd2, 0xb9, 0xd9,
        ];
        let found = take(&answer(0x0101, ID, &[(0x20, &mapped)]));
        let expected = "[2001:db8:1234:5678:11:2233:4455:6677]:32853".parse().unwrap();
        assert_eq!(found, Ok(Some(expected)));
    }

    #[test]
    fn a_hostile_answer_is_an_error() {
        let refused = [0, 0, 4, 1, b'n', b'o'];
        for (bytes, error) in [
            (answer(0x0101, ID ^ 1, &[(0x20, MAPPED)]), StunError::NotOurs),
            (answer(0x0001, ID, &[(0x20, MAPPED)]), StunError::NotOurs),
            (answer(0x0011, ID, &[(0x20, MAPPED)]), StunError::NotOurs),
            (answer(0x0103, ID, &[(0x20, MAPPED)]), StunError::NotOurs),
            (answer(0x0111, ID, &[(0x09, &refused)]), StunError::Refused(Some(401))),
            (answer(0x0111, ID, &[]), StunError::Refused(None)),
            (answer(0x0101, ID, &[]), StunError::NoAddress),
            // What a NAT may have changed on the way does not count.
            (answer(0x0101, ID, &[(0x01, MAPPED)]), StunError::NoAddress),
            (answer(0x0101, ID, &[(0x20, &MAPPED[..7])]), StunError::NoAddress),
            (answer(0x0101, ID, &[(0x20, &[0, 3, 1, 2, 3, 4, 5, 6])]), StunError::NoAddress),
            (answer(0x0101, ID, &[(0x7fff, &[]), (0x20, MAPPED)]), StunError::Unknown(0x7fff)),
            (answer(0x0101, ID, &[(0x8023, &[0; 600])]), StunError::Long(604)),
            (b"HTTP/1.1 400 Bad Request\r\n".to_vec(), StunError::Malformed),
        ] {
            assert_eq!(take(&bytes), Err(error), "{bytes:x?}");
        }
        let mut wrong = VECTOR;
        wrong[79] ^= 1;
        assert_eq!(take(&wrong), Err(StunError::Malformed), "its own checksum");
    }

    #[test]
    fn an_attribute_past_the_end_is_an_error() {
        let mut bytes = answer(0x0101, ID, &[(0x20, MAPPED)]);
        bytes[23] = 200;
        assert!(take(&bytes).is_err());
    }

    #[test]
    fn attributes_that_may_be_unknown_are_passed_over() {
        let found =
            take(&answer(0x0101, ID, &[(0x8022, b"odd"), (0xffff, &[7; 9]), (0x20, MAPPED)]));
        assert_eq!(found, Ok(Some("192.0.2.1:32853".parse().unwrap())));
    }

    /// Asks a server on this machine, which answers with these bytes and then keeps the connection.
    async fn asked(
        answers: impl FnOnce(Vec<u8>) -> Vec<u8> + Send + 'static,
    ) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 20];
            stream.read_exact(&mut request).await.unwrap();
            // The client may have left.
            let _ = stream.write_all(&answers(request)).await;
            let _ = stream.read(&mut [0]).await;
        };
        let client = async { ask(TcpStream::connect(address)).await.map(|(_, observed)| observed) };
        tokio::join!(server, client).1
    }

    #[tokio::test]
    async fn a_server_is_asked_over_a_connection() {
        let echo = |request: Vec<u8>| {
            let id = u128::from_be_bytes(request[4..].try_into().unwrap());
            answer(0x0101, id, &[(0x20, MAPPED)])
        };
        assert_eq!(asked(echo).await.unwrap(), "192.0.2.1:32853".parse().unwrap());
        assert!(asked(|_| VECTOR.to_vec()).await.is_err(), "it answers another request");
        assert!(asked(|_| vec![b'x'; 100_000]).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_given_up() {
        let error = ask(std::future::pending()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let error = asked(|_| Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    proptest! {
        #[test]
        fn no_answer_panics(bytes in prop::collection::vec(any::<u8>(), 0..700), framed: bool) {
            let mut bytes = bytes;
            if framed && bytes.len() >= 20 {
                let length = u16::try_from(bytes.len() - 20).unwrap();
                bytes[..2].copy_from_slice(&[1, 1]);
                bytes[2..4].copy_from_slice(&length.to_be_bytes());
                bytes[4..8].copy_from_slice(&[0x21, 0x12, 0xa4, 0x42]);
                bytes[8..20].copy_from_slice(&ID.to_be_bytes()[4..]);
            }
            let mut binding = Binding::new(ID);
            let mut rest = &bytes[..];
            while !rest.is_empty() && binding.missing() > 0 {
                let (now, later) = rest.split_at(binding.missing().min(rest.len()));
                if binding.take(now).is_err() {
                    break;
                }
                rest = later;
            }
        }
    }
}
