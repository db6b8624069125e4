//! The header that a load balancer puts before a connection: the PROXY protocol, version 1 or 2.
//!
//! Spec: The PROXY protocol, versions 1 & 2 (HAProxy Technologies), sections 2.1 and 2.2.

use std::net::SocketAddr;

use proxy_header::{Error, ParseConfig, ProxyHeader};

/// The longest header that is read: version 1 has at most 107 bytes, version 2 with all its extensions seldom more
/// than a few hundred.
const LONGEST: usize = 4096;

/// The longest line of version 1, with its end (2.1).
const V1_LONGEST: usize = 107;

/// How long a version 2 header is before its addresses: signature, command, family, length.
const V2_START: usize = 16;

/// Version 2, and the command LOCAL.
const V2_LOCAL: u8 = 0x20;

/// Version 2, and the command PROXY.
const V2_PROXY: u8 = 0x21;

/// The connection did not begin with a PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The header is missing or malformed.
    #[error("the connection does not begin with a valid PROXY header")]
    Invalid,
    /// The header is longer than any sensible one.
    #[error("the PROXY header is too long")]
    TooLong,
}

/// A complete header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The client of the load balancer. `None` if the balancer connects for itself, as for a health check, or cannot
    /// tell. Then the connection's own address counts.
    pub source: Option<SocketAddr>,
    /// The bytes behind the header.
    pub rest: Vec<u8>,
}

/// Reads a header from chunks of any size.
#[derive(Debug, Default)]
pub struct HeaderReader {
    buffer: Vec<u8>,
}

impl HeaderReader {
    /// Creates a reader that has not seen a byte.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns whether nothing has been received yet.
    pub fn is_untouched(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Takes received bytes and returns the header once it is complete. Do not call it again after that.
    ///
    /// # Errors
    /// [`HeaderError`], as early as possible.
    ///
    /// # Security
    /// Any client that may send a header can choose the address that its limits count for. So the port must be open to
    /// the load balancer only. The address has no other use.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<Option<Header>, HeaderError> {
        self.buffer.extend_from_slice(bytes);
        let start = self.buffer.len().min(V1.len());
        let start_v2 = self.buffer.len().min(V2.len());
        if self.buffer[..start] != V1[..start] && self.buffer[..start_v2] != V2[..start_v2] {
            return Err(HeaderError::Invalid);
        }
        let mut whole = false;
        if let [command, family, high, low] =
            self.buffer.get(V2.len()..V2_START).unwrap_or_default()
            && self.buffer.starts_with(V2)
        {
            let end = usize::from(u16::from_be_bytes([*high, *low])) + V2_START;
            if end > LONGEST {
                return Err(HeaderError::TooLong);
            }
            whole = self.buffer.len() >= end;
            // Neither tells an address, whatever the block contains (2.2): LOCAL in any family, and PROXY with
            // AF_UNSPEC.
            if *command == V2_LOCAL || *command == V2_PROXY && *family < 0x10 {
                let header = || Header { source: None, rest: self.buffer[end..].to_vec() };
                return Ok(whole.then(header));
            }
        }
        let mut header = self.buffer.as_slice();
        if header.starts_with(V1) {
            // The line must end within its limit, however much has been read behind it.
            let line = &header[..header.len().min(V1_LONGEST)];
            match line.windows(2).position(|pair| pair == b"\r\n") {
                Some(end) => (header, whole) = (&header[..end + 2], true),
                None if line.len() == V1_LONGEST => return Err(HeaderError::Invalid),
                None => {}
            }
        }
        let config = ParseConfig { include_tlvs: false, ..ParseConfig::default() };
        match ProxyHeader::parse(header, config) {
            Ok((header, length)) => Ok(Some(Header {
                source: header.proxied_address().map(|address| address.source),
                rest: self.buffer[length..].to_vec(),
            })),
            // A header that is complete by its own length, and still too short, is not valid.
            Err(Error::BufferTooShort) if !whole => Ok(None),
            Err(_) => Err(HeaderError::Invalid),
        }
    }
}

const V1: &[u8] = b"PROXY ";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = V2.to_vec();
        bytes.extend([command, family]);
        bytes.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn v6_body() -> Vec<u8> {
        let mut body = Vec::new();
        body.extend("2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
        body.extend("2001:db8::2".parse::<std::net::Ipv6Addr>().unwrap().octets());
        body.extend([0xff, 0xfe, 0x1d, 0xc9]);
        // An extension: no operation, three bytes.
        body.extend([4, 0, 3, 1, 2, 3]);
        body
    }

    fn good() -> Vec<(Vec<u8>, Option<SocketAddr>)> {
        let v4 = Some("192.0.2.1:56324".parse().unwrap());
        let v6 = Some("[2001:db8::1]:65534".parse().unwrap());
        let v4_body = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 0x04, 0x1d, 0xc9];
        vec![
            (b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 7625\r\n".to_vec(), v4),
            (b"PROXY TCP6 2001:db8::1 2001:db8::2 65534 7625\r\n".to_vec(), v6),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), None),
            (v2(0x21, 0x11, &v4_body), v4),
            (v2(0x21, 0x21, &v6_body()), v6),
            (v2(0x20, 0x00, &[]), None),
            (v2(0x20, 0x11, &v4_body), None),
            // The address block of LOCAL is skipped, even if it is not valid.
            (v2(0x20, 0x11, &[0; 3]), None),
            (v2(0x20, 0xff, b"anything"), None),
            (v2(0x21, 0x00, &[]), None),
            (v2(0x21, 0x00, &[4, 0, 1, 0]), None),
            (v2(0x21, 0x01, &[]), None),
            (v2(0x21, 0x31, &[b'/'; 216]), None),
            (v2(0x21, 0x32, &[b'/'; 230]), None),
            (v2(0x21, 0x11, &[&v4_body[..], &[0x20, 1, 0xf4], &[7; 500]].concat()), v4),
        ]
    }

    #[test]
    fn each_form_is_read_in_any_pieces_and_what_follows_is_kept() {
        for (bytes, source) in good() {
            for size in [1, 2, 5, 15, 16, 1000] {
                let mut all = bytes.clone();
                all.extend([5, 1, 0]);
                let mut reader = HeaderReader::new();
                let mut chunks = all.chunks(size);
                let header = loop {
                    let chunk = chunks.next().expect("the header ends");
                    if let Some(header) = reader.handle_bytes(chunk).unwrap() {
                        break header;
                    }
                };
                let rest: Vec<u8> = header.rest.iter().chain(chunks.flatten()).copied().collect();
                assert_eq!((header.source, rest), (source, vec![5, 1, 0]), "{bytes:?}");
            }
        }
    }

    #[test]
    fn what_is_no_header_is_refused_at_once() {
        let mut long = vec![b'1'; 120];
        long.splice(..0, *b"PROXY TCP4 ");
        for (bytes, error) in [
            (vec![5, 1, 0], HeaderError::Invalid),
            (b"PROXX".to_vec(), HeaderError::Invalid),
            (b"GET / HTTP/1.1\r\n".to_vec(), HeaderError::Invalid),
            (b"PROXY TCP5 1.1.1.1 2.2.2.2 1 2\r\n".to_vec(), HeaderError::Invalid),
            (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 70000\r\n".to_vec(), HeaderError::Invalid),
            (b"PROXY TCP4 ::1 ::2 1 2\r\n    ".to_vec(), HeaderError::Invalid),
            (long, HeaderError::Invalid),
            ([b"PROXY UNKNOWN ".as_slice(), &[b'x'; 120], b"\r\n"].concat(), HeaderError::Invalid),
            (b"\r\n\r\n\0\r\nQUIX".to_vec(), HeaderError::Invalid),
            (v2(0x31, 0x11, &[0; 12]), HeaderError::Invalid),
            (v2(0x21, 0x11, &[0; 11]), HeaderError::Invalid),
            (v2(0x21, 0x51, &[0; 12]), HeaderError::Invalid),
            (v2(0x22, 0x11, &[0; 12]), HeaderError::Invalid),
            (v2(0x21, 0x31, &[0; 215]), HeaderError::Invalid),
            (v2(0x20, 0x00, &[0; 5000])[..16].to_vec(), HeaderError::TooLong),
            (v2(0x21, 0x11, &[0; 5000])[..16].to_vec(), HeaderError::TooLong),
        ] {
            assert_eq!(HeaderReader::new().handle_bytes(&bytes), Err(error), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            start in proptest::sample::select(vec![&b""[..], b"PROXY ", b"PROXY TCP4 ", V2]),
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            size in 1_usize..40,
        ) {
            let mut all = start.to_vec();
            all.extend(bytes);
            let whole = HeaderReader::new().handle_bytes(&all);
            let mut reader = HeaderReader::new();
            let mut pieces = Ok(None);
            let mut given = 0;
            for chunk in all.chunks(size) {
                pieces = reader.handle_bytes(chunk);
                given += chunk.len();
                prop_assert!(reader.buffer.len() <= LONGEST + size);
                if pieces != Ok(None) {
                    break;
                }
            }
            match (whole, pieces) {
                (Ok(Some(whole)), Ok(Some(mut pieces))) => {
                    pieces.rest.extend(&all[given..]);
                    prop_assert_eq!(whole, pieces);
                }
                // In pieces, a wrong header may be detected sooner, but the verdict is the same.
                (whole, pieces) => prop_assert_eq!(whole.is_err(), pieces.is_err()),
            }
        }
    }
}
