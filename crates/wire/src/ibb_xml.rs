//! The three elements of in-band bytestreams: `<open/>`, `<data/>`, `<close/>`.

use minidom::Element;
use rxml::xml_ncname;

use crate::{block_text, ns, plain::Plain, stanza::Refusal};

/// The kind of stanza that carries blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IbbStanza {
    /// IQ: each block is acknowledged.
    #[default]
    Iq,
    /// Message: no block is acknowledged.
    Message,
}

impl IbbStanza {
    /// Returns the name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Iq => "iq",
            Self::Message => "message",
        }
    }
}

/// An in-band bytestream element that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IbbPayload {
    /// A request to open a stream.
    Open {
        /// The stream's id.
        sid: String,
        /// The largest block in bytes before base64; not 0.
        block_size: u16,
        /// The kind of stanza that carries blocks.
        stanza: IbbStanza,
    },
    /// A block.
    Data {
        /// The stream's id.
        sid: String,
        /// The block's number.
        seq: u16,
        /// The block in base64, not checked.
        text: String,
    },
    /// The end of the stream.
    Close {
        /// The stream's id.
        sid: String,
    },
}

impl IbbPayload {
    /// Reads an element; `None` if it is not one of these three.
    ///
    /// # Errors
    /// `bad-request`, which names the wrong attribute.
    ///
    /// Spec: XEP-0047 2.0.1, section 9 (XML Schema).
    pub fn parse(element: &Element) -> Result<Option<Self>, Refusal> {
        if element.ns() != ns::IBB {
            return Ok(None);
        }
        let sid = || match element.attr("sid") {
            Some(sid) if !sid.is_empty() => Ok(sid.to_owned()),
            _ => Err(Refusal::bad_request("sid must name the bytestream")),
        };
        let number = |name: &str| element.attr(name).and_then(|text| text.parse().ok());
        Ok(Some(match element.name() {
            "open" => Self::Open {
                sid: sid()?,
                block_size: number("block-size").filter(|size| *size > 0).ok_or_else(|| {
                    Refusal::bad_request("block-size must be a number from 1 to 65535")
                })?,
                stanza: match element.attr("stanza") {
                    None | Some("iq") => IbbStanza::Iq,
                    Some("message") => IbbStanza::Message,
                    Some(_) => return Err(Refusal::bad_request("stanza must be iq or message")),
                },
            },
            "data" => Self::Data {
                sid: sid()?,
                seq: number("seq")
                    .ok_or_else(|| Refusal::bad_request("seq must be a number from 0 to 65535"))?,
                text: element.text(),
            },
            "close" => Self::Close { sid: sid()? },
            _ => return Ok(None),
        }))
    }
}

/// A block that came by IQ, in place: the part of a stanza that matters to its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainBlock<'a> {
    /// The stream's id.
    pub sid: &'a str,
    /// The block's number.
    pub seq: u16,
    /// The block in base64, not checked.
    pub text: &'a str,
}

impl<'a> PlainBlock<'a> {
    /// Reads a stanza; `None` if it is another one, or one that [`IbbPayload::parse`] refuses.
    pub fn of(stanza: &Plain<'a>) -> Option<Self> {
        let payload = stanza.payload.as_ref()?;
        let is_block = (stanza.name, stanza.attributes.get("type")) == ("iq", "set")
            && (payload.name, payload.namespace) == ("data", ns::IBB);
        let sid = payload.attributes.get("sid");
        // A block that says how much its sender takes is rare.
        if !is_block || sid.is_empty() || !payload.attributes.get("window").is_empty() {
            return None;
        }
        let seq = payload.attributes.get("seq").parse().ok()?;
        Some(Self { sid, seq, text: payload.text })
    }
}

/// Writes `<open/>`.
pub fn open(sid: &str, block_size: u16, stanza: IbbStanza) -> Element {
    Element::builder("open", ns::IBB)
        .attr(xml_ncname!("sid").into(), sid)
        .attr(xml_ncname!("block-size").into(), block_size.to_string())
        .attr(xml_ncname!("stanza").into(), stanza.as_str())
        .build()
}

/// Writes `<data/>` with the bytes in base64.
pub fn data(sid: &str, seq: u16, payload: &[u8]) -> Element {
    Element::builder("data", ns::IBB)
        .attr(xml_ncname!("sid").into(), sid)
        .attr(xml_ncname!("seq").into(), seq.to_string())
        .append(block_text::encoded(payload))
        .build()
}

/// Writes `<data/>` of a sender that takes so many bytes in unacknowledged blocks of its peer.
pub fn data_with_window(sid: &str, seq: u16, payload: &[u8], window: usize) -> Element {
    let mut data = data(sid, seq, payload);
    data.attrs_mut().insert(
        rxml::Namespace::NONE,
        xml_ncname!("window").to_owned(),
        window.to_string(),
    );
    data
}

/// Reads how much a block says its sender takes.
pub fn window_of_block(data: &Element) -> Option<usize> {
    data.attr("window")?.parse().ok()
}

/// Writes `<window/>` for an acknowledgement: how many bytes the peer may send in unacknowledged blocks.
pub fn window(bytes: usize) -> Element {
    Element::builder("window", ns::HINTS)
        .attr(xml_ncname!("bytes").into(), bytes.to_string())
        .build()
}

/// Reads `<window/>` in the answer to a block.
pub fn window_of_answer(iq: &Element) -> Option<usize> {
    iq.get_child("window", ns::HINTS)?.attr("bytes")?.parse().ok()
}

/// Writes `<close/>`.
pub fn close(sid: &str) -> Element {
    Element::builder("close", ns::IBB).attr(xml_ncname!("sid").into(), sid).build()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        plain::{Scan, scan},
        stanza::{Condition, Kind, Stanza, StanzaType},
    };

    fn parse(xml: &str) -> Result<Option<IbbPayload>, Condition> {
        let element: Element =
            xml.replacen(' ', " xmlns='http://jabber.org/protocol/ibb' ", 1).parse().unwrap();
        IbbPayload::parse(&element).map_err(|refusal| refusal.condition)
    }

    #[test]
    fn the_examples_of_the_xep_are_read() {
        assert_eq!(
            parse("<open block-size='4096' sid='i781hf64' stanza='iq'/>"),
            Ok(Some(IbbPayload::Open {
                sid: "i781hf64".to_owned(),
                block_size: 4096,
                stanza: IbbStanza::Iq
            }))
        );
        assert_eq!(
            parse("<data seq='0' sid='i781hf64'>qANQR1DB</data>"),
            Ok(Some(IbbPayload::Data {
                sid: "i781hf64".to_owned(),
                seq: 0,
                text: "qANQR1DB".to_owned()
            }))
        );
        assert_eq!(
            parse("<close sid='i781hf64'/>"),
            Ok(Some(IbbPayload::Close { sid: "i781hf64".to_owned() }))
        );
    }

    #[test]
    fn what_is_written_is_read() {
        for element in [open("s", 65_535, IbbStanza::Message), data("s", 7, b"x"), close("s")] {
            assert!(matches!(IbbPayload::parse(&element), Ok(Some(_))), "{element:?}");
        }
    }

    proptest! {
        /// What the fast reader takes is exactly what the general one reads.
        #[test]
        fn a_block_is_read_in_place_as_through_a_tree(
            name in "iq|iq|iq|message",
            type_ in "set|set|set|get|result|error|",
            data in "data|data|data|close|open",
            namespace in "http://jabber.org/protocol/ibb|http://jabber.org/protocol/ibb|urn:x|jabber:client",
            sid in "(sid='[a-z\"&; ]{0,3}')?",
            seq in "(seq=\"[+-]?[0-9]{0,6}\")?",
            more in "( x='1'| xml:lang='en'| seq='1')?",
            text in "([A-Za-z0-9+/]{4}){0,9}(eA==)?([ -~]{0,2}|&#65;|\n)",
        ) {
            let xml = format!(
                "<{name} from='a@b.c/d' to='e@f.g/h' type='{type_}' id='1'><{data} xmlns='{namespace}' {sid} {seq}{more}>\
                 {text}</{data}></{name}>"
            );
            let Scan::Plain(plain, _) = scan(xml.as_bytes(), ns::CLIENT) else { return Ok(()) };
            let stanza = Stanza::parse(plain.to_element()).unwrap();
            let of_tree = stanza.payload().map(IbbPayload::parse);
            let is_request = stanza.kind == Kind::Iq && stanza.type_ == StanzaType::Set;
            let expected = match &of_tree {
                Some(Ok(Some(IbbPayload::Data { sid, seq, text }))) if is_request => {
                    Some(PlainBlock { sid, seq: *seq, text })
                }
                _ => None,
            };
            prop_assert_eq!(PlainBlock::of(&plain), expected, "{}", xml);
        }
    }

    #[test]
    fn bad_attributes_are_named() {
        for xml in [
            "<open block-size='0' sid='a'/>",
            "<open block-size='65536' sid='a'/>",
            "<open sid='a'/>",
            "<open block-size='1' sid='a' stanza='presence'/>",
            "<data sid='a'>eA==</data>",
            "<data sid='a' seq='-1'>eA==</data>",
            "<data seq='1'>eA==</data>",
            "<close />",
        ] {
            assert_eq!(parse(xml), Err(Condition::BadRequest), "{xml}");
        }
        assert_eq!(parse("<other />"), Ok(None));
    }
}
