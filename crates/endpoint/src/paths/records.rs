//! The records of the path layer: those of TLS pass unchanged, control records have a type of their own.
//!
//! ```text
//! type u8 | version 0x0303 | length u16 | payload          type 26: payload = kind u8, body
//! ```

use std::fmt;

/// The length of a record's header, in bytes.
pub(super) const HEAD: usize = 5;
/// The type of control records. TLS itself has none of this type.
const CONTROL: u8 = 26;
/// The version that TLS 1.2 and 1.3 write (RFC 8446, 5.1).
const VERSION: [u8; 2] = [3, 3];
/// The longest payload of a control record, in bytes.
const LONGEST_CONTROL: usize = 1 << 14;
/// The longest sealed message that is kept, in bytes. A message with sixteen candidates is much shorter.
pub(super) const LONGEST_SEALED: usize = 1024;
/// The longest payload of a TLS record, in bytes (RFC 5246, 6.2.3; TLS 1.3 allows less).
const LONGEST_TLS: usize = (1 << 14) + 2048;

const ACK: u8 = 1;
const FROM: u8 = 2;
const END: u8 = 3;
const PING: u8 = 4;
const PONG: u8 = 5;
pub(super) const SEALED: u8 = 6;
const LOST: u8 = 7;
const USE: u8 = 8;

/// A message between the path layers of the two ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Control {
    /// TLS has taken all bytes before this one. The end counts as one byte, and says that everything has come.
    Ack(u64),
    /// The next TLS record on this path begins at this byte of the stream.
    From(u64),
    /// The stream ends at this byte.
    End(u64),
    /// Asks for a sign of life of this path.
    Ping(u32),
    /// Answers a ping with the same number.
    Pong(u32),
    /// A message that only the other end can read.
    Sealed(Vec<u8>),
    /// The direct connection, or the leg of the relay, with this number was given up.
    Lost(u32),
    /// This direct connection, or this later leg of the relay, is taken and has this number.
    Use(u32),
}

impl Control {
    /// Appends the record to `out`.
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ack(offset) => put(out, ACK, &offset.to_be_bytes()),
            Self::From(offset) => put(out, FROM, &offset.to_be_bytes()),
            Self::End(offset) => put(out, END, &offset.to_be_bytes()),
            Self::Ping(number) => put(out, PING, &number.to_be_bytes()),
            Self::Pong(number) => put(out, PONG, &number.to_be_bytes()),
            Self::Sealed(message) => put(out, SEALED, message),
            Self::Lost(number) => put(out, LOST, &number.to_be_bytes()),
            Self::Use(number) => put(out, USE, &number.to_be_bytes()),
        }
    }

    /// Reads the payload of a control record; `None` for a kind that is not known.
    fn read(payload: &[u8]) -> Result<Option<Self>, RecordError> {
        let Some((&kind, body)) = payload.split_first() else { return Err(RecordError::Empty) };
        let wrong = || RecordError::Body { kind, length: body.len() };
        let long =
            || Ok::<_, RecordError>(u64::from_be_bytes(body.try_into().map_err(|_| wrong())?));
        let short =
            || Ok::<_, RecordError>(u32::from_be_bytes(body.try_into().map_err(|_| wrong())?));
        Ok(Some(match kind {
            ACK => Self::Ack(long()?),
            FROM => Self::From(long()?),
            END => Self::End(long()?),
            PING => Self::Ping(short()?),
            PONG => Self::Pong(short()?),
            SEALED if body.len() > LONGEST_SEALED => return Err(wrong()),
            SEALED => Self::Sealed(body.to_vec()),
            LOST => Self::Lost(short()?),
            USE => Self::Use(short()?),
            _ => return Ok(None),
        }))
    }
}

/// The length of a [`Control::Use`] record, in bytes.
pub(super) const USE_LENGTH: usize = HEAD + 1 + 4;

/// Returns the number in a record of kind USE; `None` if it is another one.
pub(super) fn read_use(record: &[u8; USE_LENGTH]) -> Option<u32> {
    let (mut decoder, mut input) = (Decoder::default(), &record[..]);
    match decoder.decode(&mut input) {
        Ok(Some(Decoded::Control(Control::Use(number)))) => Some(number),
        _ => None,
    }
}

fn put(out: &mut Vec<u8>, kind: u8, body: &[u8]) {
    let length = u16::try_from(body.len() + 1).unwrap_or(u16::MAX);
    out.push(CONTROL);
    out.extend(VERSION);
    out.extend(length.to_be_bytes());
    out.push(kind);
    out.extend(body);
}

/// What is wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordError {
    /// A control record without a kind.
    Empty,
    /// A control record of this kind whose body does not have this length.
    Body { kind: u8, length: usize },
    /// A record longer than its type allows.
    Long { kind: u8, length: usize },
    /// A control record of another version.
    Version([u8; 2]),
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a control record is empty"),
            Self::Body { kind, length } => {
                write!(f, "a control record of kind {kind} cannot have a body of {length} bytes")
            }
            Self::Long { kind, length } => {
                write!(f, "a record of type {kind} cannot have {length} bytes")
            }
            Self::Version([major, minor]) => {
                write!(f, "a control record has the version {major}.{minor}, not 3.3")
            }
        }
    }
}

/// A record's header.
#[derive(Clone, Copy, Debug)]
struct Head {
    control: bool,
    /// The length of the payload, in bytes.
    length: usize,
}

impl Head {
    fn read(head: [u8; HEAD]) -> Result<Self, RecordError> {
        let [kind, major, minor, high, low] = head;
        let length = usize::from(u16::from_be_bytes([high, low]));
        let control = kind == CONTROL;
        if control && [major, minor] != VERSION {
            return Err(RecordError::Version([major, minor]));
        }
        if control && length == 0 {
            return Err(RecordError::Empty);
        }
        if length > if control { LONGEST_CONTROL } else { LONGEST_TLS } {
            return Err(RecordError::Long { kind, length });
        }
        Ok(Self { control, length })
    }
}

/// A part of what came on a path.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decoded<'a> {
    /// A TLS record's header that came in pieces.
    Head([u8; HEAD]),
    /// Bytes of one or more TLS records, headers included.
    Stream(&'a [u8]),
    /// A control record of a known kind.
    Control(Control),
}

/// Reads the records of one path, in whatever pieces they come. It keeps at most a header and one control record.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// The bytes of an incomplete header.
    head: Vec<u8>,
    /// How many bytes of the current TLS record are missing.
    missing: usize,
    /// The control record that is being read.
    control: Option<Partial>,
}

#[derive(Debug)]
struct Partial {
    payload: Vec<u8>,
    missing: usize,
}

impl Decoder {
    /// Takes the next part from `input`; `None` if it needs more.
    ///
    /// # Errors
    /// [`RecordError`]; the path cannot be read any further.
    pub(super) fn decode<'a>(
        &mut self,
        input: &mut &'a [u8],
    ) -> Result<Option<Decoded<'a>>, RecordError> {
        while !input.is_empty() {
            if let Some(partial) = &mut self.control {
                let (now, later) = input.split_at(partial.missing.min(input.len()));
                *input = later;
                // More than the longest message that is kept belongs to a kind that is not known.
                let room = (LONGEST_SEALED + 2).saturating_sub(partial.payload.len());
                partial.payload.extend(&now[..now.len().min(room)]);
                partial.missing -= now.len();
                if partial.missing > 0 {
                    break;
                }
                let payload = std::mem::take(&mut partial.payload);
                self.control = None;
                match Control::read(&payload)? {
                    Some(control) => return Ok(Some(Decoded::Control(control))),
                    None => continue,
                }
            }
            if self.head.is_empty() {
                let length = self.stream(input)?;
                if length > 0 {
                    let (now, later) = input.split_at(length);
                    *input = later;
                    return Ok(Some(Decoded::Stream(now)));
                }
            }
            let (now, later) = input.split_at((HEAD - self.head.len()).min(input.len()));
            *input = later;
            self.head.extend(now);
            let Ok(bytes) = <[u8; HEAD]>::try_from(&self.head[..]) else { break };
            self.head.clear();
            let head = Head::read(bytes)?;
            if !head.control {
                self.missing = head.length;
                return Ok(Some(Decoded::Head(bytes)));
            }
            self.control = Some(Partial { payload: Vec::new(), missing: head.length });
        }
        Ok(None)
    }

    /// Returns how many bytes at the beginning of `input` belong to TLS records, as far as their headers are whole.
    fn stream(&mut self, input: &[u8]) -> Result<usize, RecordError> {
        let mut length = 0;
        loop {
            let left = input.len() - length;
            if self.missing >= left {
                self.missing -= left;
                return Ok(input.len());
            }
            length += std::mem::take(&mut self.missing);
            let Some(&head) = input[length..].first_chunk() else { return Ok(length) };
            match Head::read(head) {
                Ok(head) if !head.control => self.missing = HEAD + head.length,
                // What comes before the fault is whole.
                Err(error) if length == 0 => return Err(error),
                _ => return Ok(length),
            }
        }
    }
}

/// Finds the boundaries of the records that TLS writes.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    head: Vec<u8>,
    missing: usize,
}

impl Splitter {
    /// Goes through the next bytes, and calls `boundary` with how many of them were read at the end of each record.
    ///
    /// # Errors
    /// [`RecordError`], also for a record with the type of control records.
    pub(super) fn split(
        &mut self,
        bytes: &[u8],
        mut boundary: impl FnMut(usize),
    ) -> Result<(), RecordError> {
        let mut read = 0;
        while read < bytes.len() {
            if self.missing > 0 {
                let step = self.missing.min(bytes.len() - read);
                (read, self.missing) = (read + step, self.missing - step);
                if self.missing == 0 {
                    boundary(read);
                }
                continue;
            }
            let step = (HEAD - self.head.len()).min(bytes.len() - read);
            self.head.extend(&bytes[read..read + step]);
            read += step;
            if let Ok(head) = <[u8; HEAD]>::try_from(&self.head[..]) {
                self.head.clear();
                let read_head = Head::read(head)?;
                if read_head.control {
                    return Err(RecordError::Long { kind: CONTROL, length: read_head.length });
                }
                self.missing = read_head.length;
                if self.missing == 0 {
                    boundary(read);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use fingerpost_wire::{client_hello::Guard, path_use::check_path_use};
    use proptest::prelude::*;

    use super::*;

    fn controls() -> impl Strategy<Value = Control> {
        prop_oneof![
            any::<u64>().prop_map(Control::Ack),
            any::<u64>().prop_map(Control::From),
            any::<u64>().prop_map(Control::End),
            any::<u32>().prop_map(Control::Ping),
            any::<u32>().prop_map(Control::Pong),
            prop::collection::vec(any::<u8>(), 0..=LONGEST_SEALED).prop_map(Control::Sealed),
            any::<u32>().prop_map(Control::Lost),
            any::<u32>().prop_map(Control::Use),
        ]
    }

    /// A component lets nothing else begin a later leg of the relay.
    #[test]
    fn a_use_record_begins_as_a_component_expects() {
        let mut record = Vec::new();
        Control::Use(1 << 31).put(&mut record);
        assert_eq!(check_path_use(&record), Guard::Pass);
    }

    #[derive(Clone, Debug)]
    enum Sent {
        Tls(Vec<u8>),
        Control(Control),
        Unknown(Vec<u8>),
    }

    fn sent() -> impl Strategy<Value = Sent> {
        prop_oneof![
            (20_u8..25, prop::collection::vec(any::<u8>(), 0..600)).prop_map(|(kind, body)| {
                let mut record = vec![kind, 3, 1];
                record.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
                record.extend(body);
                Sent::Tls(record)
            }),
            controls().prop_map(Sent::Control),
            (9..=u8::MAX, prop::collection::vec(any::<u8>(), 0..LONGEST_CONTROL)).prop_map(
                |(kind, body)| {
                    let mut record = Vec::new();
                    put(&mut record, kind, &body);
                    Sent::Unknown(record)
                }
            ),
        ]
    }

    #[test]
    fn the_bytes_of_a_control_record_are_those_of_the_documentation() {
        let mut out = Vec::new();
        Control::Ack(0x0102_0304_0506_0708).put(&mut out);
        assert_eq!(out, [26, 3, 3, 0, 9, 1, 1, 2, 3, 4, 5, 6, 7, 8]);
        out.clear();
        Control::Use(7).put(&mut out);
        assert_eq!(out, [26, 3, 3, 0, 5, 8, 0, 0, 0, 7]);
        assert_eq!(read_use(out[..].try_into().unwrap()), Some(7));
        out[5] = LOST;
        assert_eq!(read_use(out[..].try_into().unwrap()), None);
    }

    #[test]
    fn a_record_that_cannot_be_is_an_error() {
        let decode = |mut input: &[u8]| Decoder::default().decode(&mut input).err();
        assert_eq!(decode(&[26, 3, 3, 0, 0]), Some(RecordError::Empty));
        assert_eq!(decode(&[26, 3, 1, 0, 1, 1]), Some(RecordError::Version([3, 1])));
        let long = RecordError::Long { kind: 26, length: 0x4001 };
        assert_eq!(decode(&[26, 3, 3, 0x40, 1, 1]), Some(long));
        let long = RecordError::Long { kind: 23, length: 0x4801 };
        assert_eq!(decode(&[23, 3, 3, 0x48, 1, 1]), Some(long));
        let body = RecordError::Body { kind: ACK, length: 1 };
        assert_eq!(decode(&[26, 3, 3, 0, 2, ACK, 1]), Some(body));
        let mut sealed = Vec::new();
        put(&mut sealed, SEALED, &[0; 5000]);
        assert!(matches!(decode(&sealed), Some(RecordError::Body { kind: SEALED, .. })));
    }

    proptest! {
        #[test]
        fn what_was_sent_arrives_in_any_pieces(
            sent in prop::collection::vec(sent(), 0..12),
            cuts in prop::collection::vec(1_usize..700, 1..40),
        ) {
            let (mut wire, mut stream, mut told) = (Vec::new(), Vec::new(), Vec::new());
            for one in sent {
                match one {
                    Sent::Tls(record) => {
                        wire.extend(&record);
                        stream.extend(record);
                    }
                    Sent::Control(control) => {
                        control.put(&mut wire);
                        told.push((stream.len(), control));
                    }
                    Sent::Unknown(record) => wire.extend(record),
                }
            }
            let (mut decoder, mut got, mut heard) = (Decoder::default(), Vec::new(), Vec::new());
            let (mut rest, mut cuts) = (&wire[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (mut now, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                rest = later;
                while let Some(decoded) = decoder.decode(&mut now).unwrap() {
                    match decoded {
                        Decoded::Head(head) => got.extend(head),
                        Decoded::Stream(bytes) => got.extend(bytes),
                        Decoded::Control(control) => heard.push((got.len(), control)),
                    }
                }
                prop_assert!(now.is_empty());
            }
            prop_assert_eq!(got, stream);
            prop_assert_eq!(heard, told);
        }

        #[test]
        fn no_input_panics_or_is_kept(input in prop::collection::vec(
            prop_oneof![Just(26_u8), Just(3), Just(0), any::<u8>()],
            0..4000,
        )) {
            let (mut decoder, mut rest) = (Decoder::default(), &input[..]);
            while let Ok(Some(_)) = decoder.decode(&mut rest) {}
            let kept = decoder.control.map_or(0, |partial| partial.payload.capacity());
            prop_assert!(decoder.head.len() < HEAD && kept <= 2 * (LONGEST_SEALED + 2));
        }

        #[test]
        fn boundaries_are_found_in_any_pieces(
            lengths in prop::collection::vec(0_usize..500, 0..20),
            cuts in prop::collection::vec(1_usize..300, 1..20),
        ) {
            let (mut wire, mut wanted) = (Vec::new(), Vec::new());
            for length in lengths {
                wire.extend([23, 3, 3]);
                wire.extend(u16::try_from(length).unwrap().to_be_bytes());
                wire.extend(vec![9; length]);
                wanted.push(wire.len());
            }
            let (mut splitter, mut found, mut at) = (Splitter::default(), Vec::new(), 0);
            let mut cuts = cuts.iter().cycle();
            while at < wire.len() {
                let next = (at + cuts.next().unwrap()).min(wire.len());
                splitter.split(&wire[at..next], |read| found.push(at + read)).unwrap();
                at = next;
            }
            prop_assert_eq!(found, wanted);
        }
    }
}
