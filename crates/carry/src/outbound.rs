//! Stanzas on their way to the server.

use std::sync::Arc;

use fingerpost_wire::{
    block_text,
    ibb_xml::{self},
    ns,
    plain::is_plain_value,
    xml,
};
use jid::Jid;
use minidom::Element;
use tokio::sync::mpsc;

/// The queue of the stanzas to the server.
pub type Outbound = mpsc::Sender<QueuedStanza>;

/// A stanza on its way to the server, in [`ns::CLIENT`].
#[derive(Clone, Debug)]
pub enum QueuedStanza {
    /// Any stanza, as a tree.
    Element(Element),
    /// A frequent stanza of an in-band bytestream.
    Ibb(QueuedIbb),
}

impl QueuedStanza {
    /// Returns the stanza as a tree.
    pub fn into_element(self) -> Element {
        match self {
            Self::Element(element) => element,
            Self::Ibb(stanza) => stanza.to_element(),
        }
    }
}

impl From<Element> for QueuedStanza {
    fn from(element: Element) -> Self {
        Self::Element(element)
    }
}

/// A block of an in-band bytestream by IQ, or the acknowledgement of one: written without a tree, because nothing in it
/// needs escaping.
#[derive(Clone, Debug)]
pub struct QueuedIbb {
    ends: Arc<Ends>,
    id: String,
    what: IbbWhat,
}

#[derive(Clone, Debug)]
enum IbbWhat {
    Block { seq: u16, payload: Vec<u8> },
    Acknowledgement,
}

impl QueuedIbb {
    /// Returns the sender's address.
    pub fn from(&self) -> &str {
        self.ends.local().as_str()
    }

    /// Returns the addressee.
    pub fn to(&self) -> &str {
        self.ends.peer().as_str()
    }

    /// Returns the name of its payload, if it has one; it is in [`ns::IBB`].
    pub fn payload(&self) -> Option<&'static str> {
        match self.what {
            IbbWhat::Block { .. } => Some("data"),
            IbbWhat::Acknowledgement => None,
        }
    }

    /// Appends the stanza to `out`, for a stream whose default namespace is that of its stanzas.
    pub fn write(&self, out: &mut Vec<u8>) {
        let (from, to) = (self.from(), self.to());
        let mut text = |parts: &[&str]| {
            parts.iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
        };
        match &self.what {
            IbbWhat::Block { seq, payload } => {
                text(&["<iq type='set' id='", &self.id, "' from='", from, "' to='", to]);
                text(&["'><data xmlns='", ns::IBB, "' sid='", &self.ends.sid]);
                text(&["' seq='", &seq.to_string(), "'>"]);
                block_text::encode(payload, out);
                out.extend_from_slice(b"</data></iq>");
            }
            IbbWhat::Acknowledgement => {
                text(&["<iq type='result' id='", &self.id, "' from='", from, "' to='", to]);
                text(&["'></iq>"]);
            }
        }
    }

    /// Returns the stanza as a tree.
    pub fn to_element(&self) -> Element {
        let type_ = match self.what {
            IbbWhat::Block { .. } => "set",
            IbbWhat::Acknowledgement => "result",
        };
        let attributes =
            [("type", type_), ("from", self.from()), ("to", self.to()), ("id", &self.id)];
        let mut iq = xml::element("iq", ns::CLIENT, &attributes);
        if let IbbWhat::Block { seq, payload } = &self.what {
            iq.append_child(ibb_xml::data(&self.ends.sid, *seq, payload));
        }
        iq
    }
}

/// The ends and the id of a stream.
#[derive(Debug)]
pub(crate) struct Ends {
    /// The peer's address, and ours.
    pair: Arc<(Jid, Jid)>,
    /// The stream's id.
    pub(crate) sid: String,
    /// Whether none of them needs escaping, so that no tree is needed to write them.
    pub(crate) is_plain: bool,
}

impl Ends {
    /// Returns those of a stream.
    pub(crate) fn new(pair: Arc<(Jid, Jid)>, sid: String) -> Self {
        let is_plain = [pair.0.as_str(), pair.1.as_str(), &sid].into_iter().all(is_plain_value);
        Self { pair, sid, is_plain }
    }

    /// Returns the peer's address.
    pub(crate) fn peer(&self) -> &Jid {
        &self.pair.0
    }

    /// Returns our address.
    pub(crate) fn local(&self) -> &Jid {
        &self.pair.1
    }

    /// Returns a block of a stream whose ends are plain.
    pub(crate) fn block(self: &Arc<Self>, id: String, seq: u16, payload: Vec<u8>) -> QueuedIbb {
        QueuedIbb { ends: Arc::clone(self), id, what: IbbWhat::Block { seq, payload } }
    }

    /// Returns the acknowledgement of a block with this id; `None` if the id or an end needs escaping.
    pub(crate) fn acknowledgement(self: &Arc<Self>, id: &str) -> Option<QueuedIbb> {
        (self.is_plain && is_plain_value(id)).then(|| QueuedIbb {
            ends: Arc::clone(self),
            id: id.to_owned(),
            what: IbbWhat::Acknowledgement,
        })
    }
}

#[cfg(test)]
mod tests {
    use fingerpost_wire::xml::{Received, Rules, StanzaBuffer};
    use proptest::prelude::*;

    use super::*;

    /// Reads what was written on a client's stream.
    fn read(written: &[u8]) -> Element {
        let header = b"<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>";
        let mut buffer = StanzaBuffer::new(Rules::CLIENT);
        let bytes = [header, written].concat();
        buffer.free()[..bytes.len()].copy_from_slice(&bytes);
        buffer.filled(bytes.len()).unwrap();
        assert!(matches!(buffer.next_whole(), Ok(Some(Received::Header(_)))));
        match buffer.next_whole() {
            Ok(Some(Received::Element(element))) => element,
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn what_is_written_without_a_tree_is_the_tree(
            local in "[a-z]{1,3}@[a-z]{1,3}\\.example/[ -~é]{1,9}",
            sid in "[ -~é]{1,9}",
            id in "[ -~é]{0,9}",
            seq in any::<u16>(),
            payload in proptest::collection::vec(any::<u8>(), 1..200),
        ) {
            let Ok(local) = Jid::new(&local) else { return Ok(()) };
            let juliet = Jid::new("juliet@capulet.lit/b").unwrap();
            let ends = Arc::new(Ends::new(Arc::new((juliet, local.clone())), sid.clone()));
            let is_plain = |text: &str| {
                text.bytes().all(|byte| (b' '..=b'~').contains(&byte) && !b"<>&'\"".contains(&byte))
            };
            prop_assert_eq!(ends.is_plain, is_plain(local.as_str()) && is_plain(&sid));
            let acknowledgement = ends.acknowledgement(&id);
            prop_assert_eq!(acknowledgement.is_some(), ends.is_plain && is_plain(&id));
            if !ends.is_plain {
                return Ok(());
            }
            let block = ends.block("b-1".to_owned(), seq, payload);
            for stanza in acknowledgement.into_iter().chain([block]) {
                let mut written = Vec::new();
                stanza.write(&mut written);
                prop_assert_eq!(read(&written), stanza.to_element());
                prop_assert_eq!((stanza.from(), stanza.to()), (local.as_str(), "juliet@capulet.lit/b"));
            }
        }
    }
}
