//! Everything that knows XML: namespaces, stanzas, addresses, the link to the XMPP server.

pub mod disco;
pub mod echo;
pub mod iq;
pub mod jid;
pub mod link;
#[cfg(test)]
mod link_tests;
pub mod ns;
pub mod plain;
pub mod reader;
pub mod rsm;
pub mod size;
pub mod stanza;
pub mod text;
pub(crate) mod tokens;
pub mod xml;
