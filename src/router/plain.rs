//! What is asked most, answered without a tree of elements on either way.
//!
//! Each of these does exactly what [`Router::handle`] would; whatever is not quite plain is left to that.

use std::time::Instant;

use super::Router;
use crate::xmpp::{jid::canonical, ns, plain::Plain, xml};

impl Router {
    /// Takes a stanza if it is one of the few; its answer goes behind what is in `out`. Says whether it did.
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

    /// disco#info of the component itself.
    fn tell_info(&mut self, from: &str, id: &str, out: &mut Vec<u8>) -> bool {
        let Some(asker) = canonical(from).map(|from| from.to_bare()) else { return false };
        // Who may not, or too often, is told why elsewhere.
        if !self.options.access.admits(&asker) || !self.rates.allow(&asker, Instant::now()) {
            return false;
        }
        if self.info.is_empty() && xml::write(&self.options.info(), &mut self.info).is_err() {
            self.info.clear();
            return false;
        }
        // The values hold nothing that needs escaping: they are plain.
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
