//! Answers the most frequent requests without a tree of elements in either direction.
//!
//! Each answer is exactly that of [`Router::handle`]; a stanza that is not plain goes there.

use std::time::Instant;

use fingerpost_wire::{jid::canonical, ns, plain::Plain, xml};

use super::Router;

impl Router {
    /// Takes a stanza if it is one of these; appends its answer to `out`. Returns whether it did.
    pub fn handle_plain(&mut self, stanza: &Plain<'_>, out: &mut Vec<u8>) -> bool {
        let Some(payload) = &stanza.payload else { return false };
        let attribute = |name| stanza.attributes.get(name);
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
