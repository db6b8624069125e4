//! What goes over the wire: stanzas and addresses, offers of TLS, fingerprints, in-band bytestreams.
//!
//! Everything here is a value or a state machine. It does no I/O, reads no clock and draws no random numbers, which
//! `clippy.toml` enforces: a caller passes bytes, elements and times in, and gets elements and decisions out. The component and
//! users' programs use it.
//!
//! | question | module |
//! |---|---|
//! | how XML from strangers is read and written | [`xml`], on top of [`tokens`]; plain stanzas without a copy: [`plain`] |
//! | what a stanza is, and how it is refused | [`stanza`]; how long it may be: [`size`]; long answers: [`rsm`] |
//! | how a component logs in | [`handshake`] |
//! | in which form addresses are compared | [`jid`] |
//! | how TLS is offered in a Jingle session | [`offer`], in the four dialects of [`dialect`] |
//! | what a Jingle action looks like | [`jingle`], [`transport`], [`transport_kind`], [`ice`]; words that are not known here: [`word`] |
//! | how a session is proposed before it is started | [`message_initiation`] |
//! | how in-band bytestreams work | [`ibb`] decides, [`ibb_window`] says how much may be under way, [`ibb_xml`] reads and writes; the text of blocks: [`block_text`] |
//! | what an offer of a file says, in two protocols | [`mod@file`]; how the older one goes on: [`si`] |
//! | how a SOCKS5 bytestream is named | [`dst_addr`] |
//! | whether a stream begins as TLS does | [`client_hello`]; whether a later leg of it begins as it must: [`path_use`] |
//! | what identifies a key | [`mod@print`], [`key`]; what proves its possession: [`proof`] |

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests may panic"))]
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests are the callers"))]

pub mod block_text;
pub mod client_hello;
pub mod dialect;
pub mod dst_addr;
pub mod file;
pub mod handshake;
pub mod ibb;
pub mod ibb_window;
pub mod ibb_xml;
pub mod ice;
pub mod jid;
pub mod jingle;
pub mod key;
pub mod message_initiation;
pub mod ns;
pub mod offer;
pub mod path_use;
pub mod plain;
pub mod print;
pub mod proof;
pub mod rsm;
pub mod si;
pub mod size;
pub mod stanza;
pub mod text;
pub mod tokens;
pub mod transport;
pub mod transport_kind;
pub mod word;
pub mod xml;
