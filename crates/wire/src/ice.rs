//! The ICE transport of a Jingle session with TCP candidates, read and written (XEP-0371, RFC 6544).
//!
//! It reads only candidates that this project can use: those over TCP of the first component. It counts the other candidates of a peer,
//! and ignores elements that it does not know.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use minidom::Element;

use crate::{ns, xml};

/// The most candidates that a side offers, and that are read of a transport.
pub const MOST_CANDIDATES: usize = 16;
/// The most elements of a transport that are looked at.
const MOST_ELEMENTS: usize = 64;
/// The lengths of a username fragment and of a password, in characters (RFC 8445, 5.3). Those of peers are at most this
/// long in the format of SDP (RFC 8839, 5.4).
const UFRAG: [usize; 2] = [4, 256];
const PWD: [usize; 2] = [22, 256];
/// The highest priority (RFC 8445, 5.1.2).
const HIGHEST: u32 = (1 << 31) - 1;
/// The port in active candidates, which nobody dials: the discard port (RFC 6544, 4.5).
pub const NO_PORT: u16 = 9;

/// The username fragment and the password of one side (RFC 8445, 5.3).
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    ufrag: String,
    pwd: String,
}

impl Credentials {
    /// Returns the credentials, if both parts have an allowed length and only characters of RFC 8839 (`ice-char`).
    pub fn new(ufrag: &str, pwd: &str) -> Option<Self> {
        let fits = |text: &str, [least, most]: [usize; 2]| {
            let is_allowed = |c: u8| c.is_ascii_alphanumeric() || c == b'+' || c == b'/';
            (least..=most).contains(&text.len()) && text.bytes().all(is_allowed)
        };
        (fits(ufrag, UFRAG) && fits(pwd, PWD))
            .then(|| Self { ufrag: ufrag.to_owned(), pwd: pwd.to_owned() })
    }

    /// Returns the username fragment.
    pub fn ufrag(&self) -> &str {
        &self.ufrag
    }

    /// Returns the password.
    pub fn pwd(&self) -> &str {
        &self.pwd
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("ufrag", &self.ufrag).finish_non_exhaustive()
    }
}

/// Which side opens the connection of a candidate (RFC 6544, 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpType {
    /// The candidate's side.
    Active,
    /// The other side.
    Passive,
    /// Both at the same time: simultaneous-open.
    So,
}

impl TcpType {
    const ALL: [Self; 3] = [Self::Active, Self::Passive, Self::So];

    /// Returns the name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Passive => "passive",
            Self::So => "so",
        }
    }

    /// Returns the type that it forms pairs with (RFC 6544, 6.2).
    pub fn opposite(self) -> Self {
        match self {
            Self::Active => Self::Passive,
            Self::Passive => Self::Active,
            Self::So => Self::So,
        }
    }
}

/// Where the address of a candidate comes from (RFC 8445, 5.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CandidateType {
    /// An interface has it.
    Host,
    /// The peer sees it in a check.
    PeerReflexive,
    /// A relay (TURN) has it.
    Relayed,
    /// A STUN server sees it.
    ServerReflexive,
}

impl CandidateType {
    const ALL: [Self; 4] = [Self::Host, Self::PeerReflexive, Self::Relayed, Self::ServerReflexive];

    /// Returns the name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::PeerReflexive => "prflx",
            Self::Relayed => "relay",
            Self::ServerReflexive => "srflx",
        }
    }

    /// Returns how much it is preferred, 0 to 126 (RFC 8445, 5.1.2.2).
    fn preference(self) -> u32 {
        match self {
            Self::Host => 126,
            Self::PeerReflexive => 110,
            Self::ServerReflexive => 100,
            Self::Relayed => 0,
        }
    }
}

/// Returns the priority of a candidate of the first component (RFC 8445, 5.1.2.1; RFC 6544, 4.2). `place` is 0 for the most
/// preferred one of its type and direction.
pub fn priority(kind: CandidateType, tcp_type: TcpType, place: u16) -> u32 {
    /// The other preference of the first one, 13 bits.
    const FIRST: u32 = (1 << 13) - 1;
    let direction = match (kind, tcp_type) {
        (CandidateType::Host | CandidateType::Relayed, TcpType::Active) => 6,
        (CandidateType::Host | CandidateType::Relayed, TcpType::Passive) => 4,
        (CandidateType::Host | CandidateType::Relayed, TcpType::So) => 2,
        // Only SYNs that cross get through most NATs.
        (_, TcpType::So) => 6,
        (_, TcpType::Active) => 4,
        (_, TcpType::Passive) => 2,
    };
    let local = (direction << 13) + FIRST.saturating_sub(u32::from(place));
    (kind.preference() << 24) + (local << 8) + (256 - 1)
}

/// Returns the priority of a pair (RFC 8445, 6.1.2.3).
pub fn pair_priority(controlling: u32, controlled: u32) -> u64 {
    let (least, most) = (controlling.min(controlled), controlling.max(controlled));
    (u64::from(least) << 32) + (u64::from(most) << 1) + u64::from(controlling > controlled)
}

/// A TCP candidate of the first component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The address; the port of an active one says nothing.
    pub address: SocketAddr,
    /// Which side opens the connection.
    pub tcp_type: TcpType,
    /// Where the address comes from.
    pub kind: CandidateType,
    /// Its priority.
    pub priority: u32,
    /// The same for candidates of one type, base and server (RFC 8445, 5.1.1.3).
    pub foundation: String,
    /// The base of a reflexive candidate.
    pub related: Option<SocketAddr>,
}

impl Candidate {
    fn read(element: &Element) -> Option<Self> {
        let number = |name: &str| element.attr(name).map(str::parse::<u32>);
        if element.attr("protocol") != Some("tcp") || number("component") != Some(Ok(1)) {
            return None;
        }
        let tcp_type =
            TcpType::ALL.into_iter().find(|one| element.attr("tcptype") == Some(one.as_str()))?;
        let kind = CandidateType::ALL
            .into_iter()
            .find(|one| element.attr("type") == Some(one.as_str()))?;
        let ip: IpAddr = element.attr("ip")?.parse().ok()?;
        let port: u16 = element.attr("port")?.parse().ok()?;
        let priority = number("priority")?.ok().filter(|one| (1..=HIGHEST).contains(one))?;
        let foundation = element.attr("foundation").unwrap_or_default();
        let related = match (element.attr("rel-addr"), element.attr("rel-port")) {
            (Some(ip), Some(port)) => match (ip.parse(), port.parse()) {
                (Ok(ip), Ok(port)) => Some(SocketAddr::new(ip, port)),
                _ => None,
            },
            _ => None,
        };
        Some(Self {
            address: SocketAddr::new(ip, port),
            tcp_type,
            kind,
            priority,
            // RFC 8839, 5.1: at most 32 characters.
            foundation: foundation.chars().take(32).collect(),
            related,
        })
    }

    /// `number` makes the id, which is unique within the transport.
    fn to_element(&self, number: usize) -> Element {
        let texts = [
            self.address.ip().to_string(),
            self.address.port().to_string(),
            self.priority.to_string(),
            format!("c{number}"),
        ];
        let [ip, port, priority, id] = &texts;
        let mut element = xml::element(
            "candidate",
            ns::JINGLE_ICE,
            &[
                ("component", "1"),
                ("foundation", &self.foundation),
                ("generation", "0"),
                ("id", id),
                ("ip", ip),
                ("network", "0"),
                ("port", port),
                ("priority", priority),
                ("protocol", "tcp"),
                ("tcptype", self.tcp_type.as_str()),
                ("type", self.kind.as_str()),
            ],
        );
        if let Some(related) = self.related {
            xml::set(&mut element, "rel-addr", &related.ip().to_string());
            xml::set(&mut element, "rel-port", &related.port().to_string());
        }
        element
    }
}

/// A transport is not usable at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IceError {
    /// The username fragment or the password is missing, too short, too long, or has other characters than those allowed.
    #[error("the ICE username fragment or password of the peer is not valid")]
    Credentials,
    /// There are candidates, but no credentials.
    #[error("the peer's ICE candidates have no credentials")]
    NoCredentials,
}

/// A `<transport/>` of ICE.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IceTransport {
    /// The credentials of its sender; `None` in an empty transport.
    pub credentials: Option<Credentials>,
    /// The candidates that are of use here, at most [`MOST_CANDIDATES`].
    pub candidates: Vec<Candidate>,
    /// How many other candidates there are: over UDP, of other components, malformed ones, or too many.
    pub others: usize,
    /// Whether no more candidates will come (RFC 8838, 14).
    pub is_complete: bool,
    /// The candidates of the receiver that are in use.
    pub remote: Vec<SocketAddr>,
}

impl IceTransport {
    /// Reads a transport.
    ///
    /// # Errors
    /// [`IceError`].
    pub fn read(element: &Element) -> Result<Self, IceError> {
        let credentials = match (element.attr("ufrag"), element.attr("pwd")) {
            (None, None) => None,
            (ufrag, pwd) => {
                let credentials = ufrag.zip(pwd).and_then(|(u, p)| Credentials::new(u, p));
                Some(credentials.ok_or(IceError::Credentials)?)
            }
        };
        let mut read = Self { credentials, ..Self::default() };
        for child in element.children().take(MOST_ELEMENTS) {
            if !child.has_ns(ns::JINGLE_ICE) {
                continue;
            }
            match child.name() {
                "candidate" => match Candidate::read(child) {
                    Some(candidate) if read.candidates.len() < MOST_CANDIDATES => {
                        read.candidates.push(candidate);
                    }
                    _ => read.others += 1,
                },
                "gathering-complete" => read.is_complete = true,
                "remote-candidate" if read.remote.len() < MOST_CANDIDATES => {
                    let (ip, port) = (child.attr("ip"), child.attr("port"));
                    if let (Some(Ok(ip)), Some(Ok(port))) =
                        (ip.map(str::parse), port.map(str::parse))
                    {
                        read.remote.push(SocketAddr::new(ip, port));
                    }
                }
                _ => {}
            }
        }
        if read.credentials.is_none() && !read.candidates.is_empty() {
            return Err(IceError::NoCredentials);
        }
        Ok(read)
    }

    /// Writes the transport.
    pub fn to_element(&self) -> Element {
        let mut element = Element::bare("transport", ns::JINGLE_ICE);
        if let Some(Credentials { ufrag, pwd }) = &self.credentials {
            xml::set(&mut element, "pwd", pwd);
            xml::set(&mut element, "ufrag", ufrag);
            // One nomination, as RFC 8445 has it.
            xml::set(&mut element, "ice2", "true");
        }
        for (candidate, number) in self.candidates.iter().zip(0..) {
            element.append_child(candidate.to_element(number));
        }
        for address in &self.remote {
            let (ip, port) = (address.ip().to_string(), address.port().to_string());
            let attributes = [("component", "1"), ("ip", &*ip), ("port", &*port)];
            element.append_child(xml::element("remote-candidate", ns::JINGLE_ICE, &attributes));
        }
        if self.is_complete {
            element.append_child(Element::bare("gathering-complete", ns::JINGLE_ICE));
        }
        element
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWORD: &str = "asd88fgpdd777uzjYhagZg";

    fn transport(attributes: &str, children: &str) -> Element {
        let namespace = ns::JINGLE_ICE;
        format!("<transport xmlns='{namespace}' {attributes}>{children}</transport>")
            .parse()
            .unwrap()
    }

    fn with_candidates(children: &str) -> IceTransport {
        let attributes = format!("ufrag='8hhy' pwd='{PASSWORD}'");
        IceTransport::read(&transport(&attributes, children)).unwrap()
    }

    const HOST: &str = "<candidate component='1' foundation='1' generation='0' id='a' ip='192.0.2.3' network='1' port='45664' \
        priority='2124414975' protocol='tcp' tcptype='passive' type='host'/>";

    #[test]
    fn the_candidates_of_the_xep_are_read() {
        // Example 1 and the table of XEP-0371, 5.3, with TCP.
        let read = with_candidates(
            "<candidate component='1' foundation='2B78DADC1A9E' generation='0' id='el0747fg11' ip='10.0.1.1' network='1' port='8998' \
              priority='2130706431' protocol='udp' type='host'/>\
             <candidate component='1' foundation='58AA96B8FA5A' generation='0' id='y3s2b30v3r' ip='192.0.2.3' network='1' port='45664' \
              priority='1694498815' protocol='tcp' rel-addr='10.0.1.1' rel-port='8998' tcptype='so' type='srflx'/>\
             <gathering-complete/><remote-candidate component='1' ip='10.0.1.2' port='9001'/>",
        );
        assert_eq!(read.credentials, Credentials::new("8hhy", PASSWORD));
        assert_eq!((read.others, read.is_complete), (1, true));
        assert_eq!(read.remote, ["10.0.1.2:9001".parse().unwrap()]);
        let expected = Candidate {
            address: "192.0.2.3:45664".parse().unwrap(),
            tcp_type: TcpType::So,
            kind: CandidateType::ServerReflexive,
            priority: 1_694_498_815,
            foundation: "58AA96B8FA5A".to_owned(),
            related: Some("10.0.1.1:8998".parse().unwrap()),
        };
        assert_eq!(read.candidates, [expected]);
    }

    #[test]
    fn what_is_not_known_is_passed_over_and_what_is_odd_is_counted() {
        for (odd, others) in [
            ("<x xmlns='other'/><candidate xmlns='other'/><future/>", 0),
            ("<candidate/>", 1),
            (&HOST.replace("tcp'", "sctp'"), 1),
            (&HOST.replace("component='1'", "component='2'"), 1),
            (&HOST.replace("passive", "future"), 1),
            (&HOST.replace(" tcptype='passive'", ""), 1),
            (&HOST.replace("'host'", "'future'"), 1),
            (&HOST.replace("192.0.2.3", "example.org"), 1),
            (&HOST.replace("45664", "65536"), 1),
            (&HOST.replace("2124414975", "2147483648"), 1),
            (&HOST.replace("2124414975", "0"), 1),
            (&HOST.replace("2124414975", "21149780477"), 1),
        ] {
            let read = with_candidates(&format!("{odd}{HOST}"));
            assert_eq!((read.candidates.len(), read.others), (1, others), "{odd}");
        }
        let more = HOST.replace("id='a'", "id='a' future='1'");
        assert_eq!(with_candidates(&more).candidates.len(), 1);
        let read = with_candidates(&HOST.repeat(500));
        assert_eq!((read.candidates.len(), read.others), (MOST_CANDIDATES, 48));
        let long = HOST.replace("foundation='1'", &format!("foundation='{}'", "é".repeat(500)));
        assert_eq!(with_candidates(&long).candidates[0].foundation.chars().count(), 32);
    }

    #[test]
    fn credentials_have_their_lengths_and_characters() {
        for (ufrag, pwd) in [
            ("abc", PASSWORD),
            ("abcd", "tooshort"),
            (&*"a".repeat(257), PASSWORD),
            ("abcd", &*"a".repeat(257)),
            ("ab:d", PASSWORD),
            ("abcd", "asd88fgpdd777uzjYhag Zg"),
            ("abc\u{e9}", PASSWORD),
        ] {
            let attributes = format!("ufrag='{ufrag}' pwd='{pwd}'");
            let read = IceTransport::read(&transport(&attributes, ""));
            assert_eq!(read, Err(IceError::Credentials), "{ufrag} {pwd}");
        }
        for half in ["ufrag='8hhy'".to_owned(), format!("pwd='{PASSWORD}'")] {
            assert_eq!(IceTransport::read(&transport(&half, "")), Err(IceError::Credentials));
        }
        let read = IceTransport::read(&transport("", HOST));
        assert_eq!(read, Err(IceError::NoCredentials));
        assert_eq!(IceTransport::read(&transport("", "")), Ok(IceTransport::default()));
        let shown = format!("{:?}", Credentials::new("8hhy", PASSWORD));
        assert!(!shown.contains(PASSWORD), "{shown}");
    }

    #[test]
    fn priorities_are_those_of_the_formulas() {
        // RFC 8445, 5.1.2.1, with the local preference of RFC 6544, 4.2.
        let host = priority(CandidateType::Host, TcpType::Active, 0);
        assert_eq!(host, (126 << 24) + (((6 << 13) + 8191) << 8) + 255);
        let next = priority(CandidateType::Host, TcpType::Active, 1);
        assert_eq!(host - next, 256);
        let order = [
            host,
            priority(CandidateType::Host, TcpType::Passive, 0),
            priority(CandidateType::Host, TcpType::So, 0),
            priority(CandidateType::PeerReflexive, TcpType::So, 0),
            priority(CandidateType::ServerReflexive, TcpType::So, 0),
            priority(CandidateType::ServerReflexive, TcpType::Active, 0),
            priority(CandidateType::ServerReflexive, TcpType::Passive, u16::MAX),
            priority(CandidateType::Relayed, TcpType::Active, 0),
        ];
        assert!(order.is_sorted_by(|a, b| a > b), "{order:?}");
        assert!(order.iter().all(|one| (1..=HIGHEST).contains(one)));
        assert_eq!(pair_priority(2, 1), (1 << 32) + 4 + 1);
        assert_eq!(pair_priority(1, 2), (1 << 32) + 4);
    }

    fn candidates() -> impl Strategy<Value = Candidate> {
        let address =
            || (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port));
        (
            address(),
            0_usize..3,
            0_usize..4,
            1..=HIGHEST,
            "[a-zA-Z0-9+/]{1,32}",
            proptest::option::of(address()),
        )
            .prop_map(|(address, tcp_type, kind, priority, foundation, related)| {
                Candidate {
                    address,
                    tcp_type: TcpType::ALL[tcp_type],
                    kind: CandidateType::ALL[kind],
                    priority,
                    foundation,
                    related,
                }
            })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            ufrag in "[a-zA-Z0-9+/]{4,256}", pwd in "[a-zA-Z0-9+/]{22,256}",
            candidates in prop::collection::vec(candidates(), 0..=MOST_CANDIDATES),
            remote in prop::collection::vec((any::<IpAddr>(), any::<u16>()), 0..4), is_complete: bool,
        ) {
            let written = IceTransport {
                credentials: Credentials::new(&ufrag, &pwd),
                candidates,
                others: 0,
                is_complete,
                remote: remote.into_iter().map(SocketAddr::from).collect(),
            };
            prop_assert_eq!(IceTransport::read(&written.to_element()), Ok(written));
        }

        #[test]
        fn no_attribute_panics(name in "[a-z]{1,12}", value: String, at in 0_usize..12) {
            let mut candidate: Element = HOST.replace("<candidate", &format!("<candidate xmlns='{}'", ns::JINGLE_ICE)).parse().unwrap();
            let names = ["component", "foundation", "ip", "port", "priority", "protocol", "tcptype", "type", "rel-addr", "rel-port"];
            let value: String = value.chars().filter(|c| !c.is_control()).collect();
            xml::set(&mut candidate, names.get(at).copied().unwrap_or(&name), &value);
            let mut transport = transport(&format!("ufrag='8hhy' pwd='{PASSWORD}'"), "");
            transport.append_child(candidate);
            let read = IceTransport::read(&transport).unwrap();
            prop_assert!(read.candidates.len() + read.others <= 1);
        }
    }
}
