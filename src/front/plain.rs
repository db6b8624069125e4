//! Handles the most frequent stanzas without a tree of elements in either direction.
//!
//! What happens is exactly what [`Router::handle`] does; a stanza that is not plain goes there. A stream's addresses are
//! compared as they are written, so an address in another spelling goes there too.

use std::time::Instant;

use fingerpost_wire::{ibb_xml::PlainBlock, jid::canonical, ns, plain::Plain, xml};

use super::Router;

impl Router {
    /// Takes a stanza if it is one of these; appends its answer to `out`. Returns whether it did.
    pub fn handle_plain(&mut self, stanza: &Plain<'_>, out: &mut Vec<u8>) -> bool {
        let attribute = |name| stanza.attributes.get(name);
        if let Some(block) = PlainBlock::of(stanza) {
            return self.take_block(attribute("from"), attribute("to"), attribute("id"), block);
        }
        let Some(payload) = &stanza.payload else {
            return stanza.name == "iq"
                && attribute("type") == "result"
                && self.take_result(attribute("from"), attribute("to"), attribute("id"));
        };
        match (stanza.name, attribute("type"), payload.name, payload.namespace) {
            ("iq", "get", "query", ns::DISCO_INFO)
                if payload.attributes.is_empty()
                    && payload.text.is_empty()
                    && attribute("to") == self.options.jid.as_str() =>
            {
                self.tell_info(attribute("from"), attribute("id"), out)
            }
            _ => false,
        }
    }

    /// Takes a block of an in-band bytestream.
    fn take_block(&mut self, from: &str, to: &str, id: &str, block: PlainBlock<'_>) -> bool {
        let Some(stream) = self.broker.stream(from, to, block.sid) else { return false };
        if self.options.access.blocks(&stream.peer().to_bare()) {
            return false;
        }
        self.hear(stream.peer());
        stream.handle_block(id, block.seq, block.text);
        true
    }

    /// Takes the result of a block of ours.
    fn take_result(&mut self, from: &str, to: &str, id: &str) -> bool {
        let Some(peer) = self.broker.handle_ibb_result(from, to, id) else { return false };
        self.hear(&peer);
        true
    }

    /// Answers disco#info of the component itself.
    fn tell_info(&mut self, from: &str, id: &str, out: &mut Vec<u8>) -> bool {
        let Some(asker) = canonical(from).map(|from| from.to_bare()) else { return false };
        // Users without access, or with too many requests, get their refusal elsewhere.
        if !self.options.access.admits(&asker) || !self.rates.allow(&asker, Instant::now()) {
            return false;
        }
        if self.info.is_empty() && xml::write(&self.options.info(), &mut self.info).is_err() {
            self.info.clear();
            return false;
        }
        // The values need no escaping, because they are plain.
        for part in [
            "<iq type='result' from='",
            self.options.jid.as_str(),
            "' to='",
            from,
            "' id='",
            id,
            "'>",
        ] {
            out.extend_from_slice(part.as_bytes());
        }
        out.extend_from_slice(&self.info);
        out.extend_from_slice(b"</iq>");
        true
    }
}
