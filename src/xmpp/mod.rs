//! All that knows XML: namespaces, stanzas, addresses, the link to the XMPP server.

pub mod jid;
pub mod ns;
pub mod stanza;
