//! The STUN messages of connectivity checks (RFC 8445, 7; RFC 8489).

use std::net::SocketAddr;

use fingerpost_wire::ice::Credentials;
use stun_types::{
    attribute::{
        Attribute, AttributeFromRaw, AttributeStaticType, AttributeType, ErrorCode, Fingerprint,
        MessageIntegrity, MessageIntegritySha256, RawAttribute, UnknownAttributes, Username,
        XorMappedAddress,
    },
    message::{
        BINDING, IntegrityAlgorithm, Message, MessageClass, MessageIntegrityCredentials,
        MessageType, MessageWrite, MessageWriteExt, MessageWriteVec, ShortTermCredentials,
        TransactionId,
    },
};

/// The attributes of ICE (RFC 8445, 16.1).
const PRIORITY: AttributeType = AttributeType::new(0x0024);
const USE_CANDIDATE: AttributeType = AttributeType::new(0x0025);
const ICE_CONTROLLED: AttributeType = AttributeType::new(0x8029);
const ICE_CONTROLLING: AttributeType = AttributeType::new(0x802a);
/// Attributes that must be understood, and are (RFC 8489, 18.3).
const UNDERSTOOD: [u16; 10] =
    [0x0001, 0x0006, 0x0008, 0x0009, 0x000a, 0x0014, 0x0015, 0x001c, 0x0020, 0x0024];
/// The length of a FINGERPRINT, with its header.
const FINGERPRINT: usize = 8;
/// The most unknown attributes that are named in an answer.
const MOST_UNKNOWN: usize = 8;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Error,
    Indication,
    Request,
    Success,
}

/// A Binding message of a check, with what its integrity covers.
#[derive(Debug)]
pub(super) struct Check<'a> {
    message: Message<'a>,
    pub(super) class: Class,
    username: Option<String>,
    pub(super) priority: Option<u32>,
    pub(super) nominates: bool,
    /// The role that the sender claims, whether that is the controlling one, and its tie-breaker.
    pub(super) role: Option<(bool, u64)>,
    pub(super) mapped: Option<SocketAddr>,
    pub(super) error: Option<u16>,
    unknown: Vec<AttributeType>,
}

impl<'a> Check<'a> {
    /// Reads a message; `None` if it is not a Binding message with a valid FINGERPRINT at its end. Attributes behind the integrity
    /// are passed over: anyone can add those.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let (covered, fingerprint) =
            bytes.split_at_checked(bytes.len().checked_sub(FINGERPRINT)?)?;
        if fingerprint != fingerprint_of(covered) {
            return None;
        }
        let message = Message::from_bytes(bytes).ok()?;
        if message.method() != BINDING {
            return None;
        }
        let id = message.transaction_id();
        let class = match message.class() {
            MessageClass::Request => Class::Request,
            MessageClass::Success => Class::Success,
            MessageClass::Error => Class::Error,
            MessageClass::Indication => Class::Indication,
        };
        let mut check = Self {
            message,
            class,
            username: None,
            priority: None,
            nominates: false,
            role: None,
            mapped: None,
            error: None,
            unknown: Vec::new(),
        };
        for (_, attribute) in message.iter_attributes() {
            let kind = attribute.get_type();
            let value: &[u8] = &attribute.value;
            let number = || Some(u64::from_be_bytes(value.try_into().ok()?));
            if [MessageIntegrity::TYPE, MessageIntegritySha256::TYPE, Fingerprint::TYPE]
                .contains(&kind)
            {
                break;
            }
            if kind == Username::TYPE {
                check.username = String::from_utf8(value.to_vec()).ok();
            } else if kind == PRIORITY {
                check.priority = value.try_into().ok().map(u32::from_be_bytes);
            } else if kind == USE_CANDIDATE {
                check.nominates = true;
            } else if kind == ICE_CONTROLLING {
                check.role = number().map(|tie_breaker| (true, tie_breaker));
            } else if kind == ICE_CONTROLLED {
                check.role = number().map(|tie_breaker| (false, tie_breaker));
            } else if kind == XorMappedAddress::TYPE {
                let mapped = XorMappedAddress::from_raw_ref(&attribute).ok();
                check.mapped = mapped.map(|mapped| mapped.addr(id));
            } else if kind == ErrorCode::TYPE {
                check.error = ErrorCode::from_raw_ref(&attribute).ok().map(|error| error.code());
            } else if kind.comprehension_required()
                && !UNDERSTOOD.contains(&kind.value())
                && check.unknown.len() < MOST_UNKNOWN
            {
                check.unknown.push(kind);
            }
        }
        Some(check)
    }

    pub(super) fn id(&self) -> TransactionId {
        self.message.transaction_id()
    }

    /// Returns whether the integrity is the one of this password.
    pub(super) fn is_signed(&self, by: &Credentials) -> bool {
        let valid = self.message.validate_integrity(&key(by));
        matches!(valid, Ok(IntegrityAlgorithm::Sha1 | IntegrityAlgorithm::Sha256))
    }

    /// Checks a request to the side with these credentials.
    ///
    /// # Errors
    /// The answer that refuses it (RFC 8489, 9.1.3 and 6.3.1).
    pub(super) fn authenticate(&self, own: &Credentials) -> Result<(), Vec<u8>> {
        let has_integrity = self.message.has_attribute(MessageIntegrity::TYPE)
            || self.message.has_attribute(MessageIntegritySha256::TYPE);
        let (true, Some(username)) = (has_integrity, &self.username) else {
            return Err(self.refusal(ErrorCode::BAD_REQUEST, None));
        };
        let is_ours = username.split_once(':').is_some_and(|(ours, _)| ours == own.ufrag());
        if !is_ours || !self.is_signed(own) {
            return Err(self.refusal(ErrorCode::UNAUTHORIZED, None));
        }
        if !self.unknown.is_empty() {
            return Err(self.refusal(ErrorCode::UNKNOWN_ATTRIBUTE, Some(own)));
        }
        Ok(())
    }

    /// Returns the answer to a request that came from this address.
    pub(super) fn success(&self, from: SocketAddr, own: &Credentials) -> Vec<u8> {
        let mut answer = Message::builder_success(&self.message, MessageWriteVec::new());
        // It fits: the attributes are few and short. So in all messages here.
        let _ = answer.add_attribute(&XorMappedAddress::new(from, self.id()));
        finish(answer, Some(own))
    }

    /// Returns the answer that refuses a request. It is signed if the request was.
    pub(super) fn refusal(&self, code: u16, own: Option<&Credentials>) -> Vec<u8> {
        let mut answer = Message::builder_error(&self.message, MessageWriteVec::new());
        if let Ok(error) = ErrorCode::builder(code).build() {
            let _ = answer.add_attribute(&error);
        }
        if code == ErrorCode::UNKNOWN_ATTRIBUTE {
            let _ = answer.add_attribute(&UnknownAttributes::new(&self.unknown));
        }
        finish(answer, own)
    }
}

/// A request of a check.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub(super) id: TransactionId,
    pub(super) own: &'a Credentials,
    pub(super) peer: &'a Credentials,
    /// The priority of a peer-reflexive candidate that the peer may learn by it.
    pub(super) priority: u32,
    pub(super) controlling: bool,
    pub(super) tie_breaker: u64,
    pub(super) nominates: bool,
}

impl Request<'_> {
    pub(super) fn write(self) -> Vec<u8> {
        let kind = MessageType::from_class_method(MessageClass::Request, BINDING);
        let mut message = Message::builder(kind, self.id, MessageWriteVec::new());
        if let Ok(username) = Username::new(&format!("{}:{}", self.peer.ufrag(), self.own.ufrag()))
        {
            let _ = message.add_attribute(&username);
        }
        let (priority, tie_breaker) = (self.priority.to_be_bytes(), self.tie_breaker.to_be_bytes());
        let role = if self.controlling { ICE_CONTROLLING } else { ICE_CONTROLLED };
        let _ = message.add_attribute(&RawAttribute::new(PRIORITY, &priority));
        let _ = message.add_attribute(&RawAttribute::new(role, &tie_breaker));
        if self.nominates {
            let _ = message.add_attribute(&RawAttribute::new(USE_CANDIDATE, &[]));
        }
        finish(message, Some(self.peer))
    }
}

/// Returns the FINGERPRINT of a message whose header counts it already (RFC 8489, 14.7).
fn fingerprint_of(covered: &[u8]) -> [u8; FINGERPRINT] {
    let mut attribute = [0x80, 0x28, 0, 4, 0x53, 0x54, 0x55, 0x4e];
    for (byte, of_sum) in attribute[4..].iter_mut().zip(Fingerprint::compute(&[covered])) {
        *byte ^= of_sum;
    }
    attribute
}

fn key(of: &Credentials) -> MessageIntegrityCredentials {
    ShortTermCredentials::new(of.pwd().to_owned()).into()
}

/// Adds the integrity with a password, and the fingerprint.
fn finish(mut message: MessageWriteVec, by: Option<&Credentials>) -> Vec<u8> {
    if let Some(by) = by {
        let _ = message.add_message_integrity(&key(by), IntegrityAlgorithm::Sha1);
    }
    let _ = message.add_fingerprint();
    message.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(name: &str) -> Credentials {
        Credentials::new(name, &name.repeat(6)).unwrap()
    }

    fn request(nominates: bool) -> Vec<u8> {
        let (own, peer) = (of("alice"), of("bobby"));
        Request {
            id: 7.into(),
            own: &own,
            peer: &peer,
            priority: 1_862_270_975,
            controlling: true,
            tie_breaker: 0x0102_0304_0506_0708,
            nominates,
        }
        .write()
    }

    fn code(answer: &[u8]) -> Option<u16> {
        Check::read(answer).unwrap().error
    }

    #[test]
    fn a_request_has_what_the_rfc_asks_for() {
        let bytes = request(true);
        let check = Check::read(&bytes).unwrap();
        assert_eq!(check.class, Class::Request);
        assert_eq!(check.username.as_deref(), Some("bobby:alice"));
        assert_eq!(check.priority, Some(1_862_270_975));
        assert_eq!(check.role, Some((true, 0x0102_0304_0506_0708)));
        assert!(check.nominates && check.is_signed(&of("bobby")) && !check.is_signed(&of("alice")));
        assert_eq!(check.authenticate(&of("bobby")), Ok(()));
        assert!(!Check::read(&request(false)).unwrap().nominates);
        let from = "192.0.2.1:5000".parse().unwrap();
        let answer = check.success(from, &of("bobby"));
        let answer = Check::read(&answer).unwrap();
        assert_eq!((answer.class, answer.mapped), (Class::Success, Some(from)));
        assert!(answer.is_signed(&of("bobby")) && answer.id() == check.id());
    }

    #[test]
    fn the_vector_of_rfc_5769_is_read() {
        // Section 2.1, with SOFTWARE, PRIORITY, ICE-CONTROLLED and USERNAME.
        let text = "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e74002400046e0001ff80290008932ff9b151263b36\
            000600096576746a3a68367659202020000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a280280004e57a3bcf";
        let bytes: Vec<u8> = (0..text.len() / 2)
            .map(|n| u8::from_str_radix(&text[2 * n..2 * n + 2], 16).unwrap())
            .collect();
        let check = Check::read(&bytes).unwrap();
        assert_eq!(check.username.as_deref(), Some("evtj:h6vY"));
        assert_eq!(check.priority, Some(0x6e00_01ff));
        assert_eq!(check.role, Some((false, 0x932f_f9b1_5126_3b36)));
        let own = Credentials::new("evtj", "VOkJxbRl1RmTxUk/WvJxBt").unwrap();
        assert_eq!(check.authenticate(&own), Ok(()));
    }

    #[test]
    fn strangers_are_refused() {
        let bytes = request(false);
        let check = Check::read(&bytes).unwrap();
        for wrong in [
            of("alice"),
            Credentials::new("bobby", &"x".repeat(30)).unwrap(),
            Credentials::new("other", of("bobby").pwd()).unwrap(),
        ] {
            assert_eq!(code(&check.authenticate(&wrong).unwrap_err()), Some(401));
        }
        let kind = MessageType::from_class_method(MessageClass::Request, BINDING);
        let unsigned = finish(Message::builder(kind, 7.into(), MessageWriteVec::new()), None);
        let refusal = Check::read(&unsigned).unwrap().authenticate(&of("bobby")).unwrap_err();
        assert_eq!(code(&refusal), Some(400));
        let mut strange = Message::builder(kind, 7.into(), MessageWriteVec::new());
        strange.add_attribute(&Username::new("bobby:alice").unwrap()).unwrap();
        strange.add_attribute(&RawAttribute::new(AttributeType::new(0x7f01), b"new")).unwrap();
        let strange = finish(strange, Some(&of("bobby")));
        let refusal = Check::read(&strange).unwrap().authenticate(&of("bobby")).unwrap_err();
        assert_eq!(code(&refusal), Some(420));
    }

    #[test]
    fn nothing_can_be_added_behind_the_integrity() {
        let bytes = request(false);
        let mut forged = bytes[..bytes.len() - FINGERPRINT].to_vec();
        forged.extend([0, 0x25, 0, 0]);
        let length = u16::try_from(forged.len() + FINGERPRINT - 20).unwrap();
        forged[2..4].copy_from_slice(&length.to_be_bytes());
        forged.extend(fingerprint_of(&forged));
        let nominates = Check::read(&forged).is_some_and(|check| check.nominates);
        assert!(!nominates);
    }

    proptest! {
        #[test]
        fn a_changed_bit_is_noticed(bit in 0_usize..8 * 100) {
            let mut bytes = request(true);
            prop_assume!(bit / 8 < bytes.len());
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Check::read(&bytes).is_none());
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), framed: bool, cut in 0_usize..120) {
            let whole = request(true);
            let begin = if framed { &whole[..cut.min(whole.len())] } else { &[] };
            let mut bytes = [begin, &bytes].concat();
            if framed && bytes.len() >= 20 {
                let length = u16::try_from(bytes.len() - 20 + FINGERPRINT).unwrap();
                bytes[2..4].copy_from_slice(&length.to_be_bytes());
                bytes.extend(fingerprint_of(&bytes));
            }
            if let Some(check) = Check::read(&bytes) {
                let _ = check.authenticate(&of("bobby"));
            }
        }
    }
}
