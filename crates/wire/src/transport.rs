//! The transports of a brokered session's legs, read and written (XEP-0260, XEP-0261).

use minidom::Element;

use crate::{ibb_xml::IbbStanza, ns, xml};

/// Our candidates are preferred over every other on their leg: type direct (126 << 16) and a local preference.
const PRIORITY: u32 = 8_257_536 + 16_384;

/// A user's `<transport/>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In-band.
    Ibb {
        /// The namespace it came in (`…:ibb:0` or `…:ibb:1`).
        namespace: &'static str,
        /// The bytestream's id; the stanzas of 2009 in docs/HISTORY.md have none.
        sid: Option<String>,
        /// The largest block, bytes before base64.
        block_size: u16,
    },
    /// SOCKS5.
    S5b {
        /// The bytestream's id.
        sid: String,
        /// The user's candidates: cid, type, JID.
        candidates: Vec<(String, String, String)>,
    },
}

impl Transport {
    /// Returns the transport inside a `<content/>`, if it is one that can be brokered.
    pub fn read(content: &Element) -> Option<Self> {
        let element = content.children().find(|child| child.name() == "transport")?;
        let namespace = element.ns();
        let in_band = [ns::JINGLE_IBB, ns::JINGLE_IBB_0];
        if let Some(namespace) = in_band.into_iter().find(|known| *known == namespace) {
            return Some(Self::Ibb {
                namespace,
                sid: element.attr("sid").filter(|sid| !sid.is_empty()).map(str::to_owned),
                block_size: element
                    .attr("block-size")
                    .and_then(|text| text.parse().ok())
                    .filter(|size| *size > 0)
                    .unwrap_or(4096),
            });
        }
        if namespace != ns::JINGLE_S5B {
            return None;
        }
        Some(Self::S5b {
            sid: element.attr("sid").filter(|sid| !sid.is_empty())?.to_owned(),
            candidates: element
                .children()
                .filter(|child| child.is("candidate", ns::JINGLE_S5B))
                .map(|child| {
                    let get = |name| child.attr(name).unwrap_or_default().to_owned();
                    (get("cid"), get("type"), get("jid"))
                })
                .collect(),
        })
    }
}

/// Returns an in-band transport. It proposes blocks by IQ, also to a user that has offered blocks by message (XEP-0261,
/// 2; the attribute is advisory): messages may be held for an inactive client, or reach another one when it has gone.
pub fn ibb(namespace: &str, sid: &str, block_size: u16) -> Element {
    let size = block_size.to_string();
    let attributes = [("sid", sid), ("block-size", &size), ("stanza", IbbStanza::Iq.as_str())];
    xml::element("transport", namespace, &attributes)
}

/// Returns a SOCKS5 transport with the component itself as direct candidates.
pub fn s5b(sid: &str, dstaddr: &str, cid: &str, jid: &str, advertise: &[(String, u16)]) -> Element {
    let mut transport = xml::element(
        "transport",
        ns::JINGLE_S5B,
        &[("sid", sid), ("dstaddr", dstaddr), ("mode", "tcp")],
    );
    for (i, (host, port)) in (0u32..).zip(advertise) {
        let cid = if i == 0 { cid.to_owned() } else { format!("{cid}-{i}") };
        transport.append_child(xml::element(
            "candidate",
            ns::JINGLE_S5B,
            &[
                ("cid", &cid),
                ("host", host),
                ("jid", jid),
                ("port", &port.to_string()),
                ("priority", &(PRIORITY - i).to_string()),
                ("type", "direct"),
            ],
        ));
    }
    transport
}

/// Returns the transport of a content as it is, to be rejected; an empty one if there is none.
pub fn given(content: Option<&Element>) -> Element {
    content
        .and_then(|content| content.children().find(|child| child.name() == "transport"))
        .cloned()
        .unwrap_or_else(|| Element::bare("transport", ns::JINGLE_IBB))
}

/// Returns a SOCKS5 transport with one notification, such as `candidate-error`.
pub fn s5b_news(sid: &str, news: Element) -> Element {
    let mut transport = xml::element("transport", ns::JINGLE_S5B, &[("sid", sid)]);
    transport.append_child(news);
    transport
}
