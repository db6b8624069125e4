//! The three elements of in-band bytestreams: `<open/>`, `<data/>`, `<close/>`.

use base64::{Engine, engine::general_purpose::STANDARD};
use minidom::Element;
use rxml::xml_ncname;

use crate::{ns, stanza::Refusal};

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
        .append(STANDARD.encode(payload))
        .build()
}

/// Writes `<close/>`.
pub fn close(sid: &str) -> Element {
    Element::builder("close", ns::IBB).attr(xml_ncname!("sid").into(), sid).build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stanza::Condition;

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
