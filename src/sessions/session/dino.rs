//! What the client Dino needs to receive a file.
//!
//! Dino 0.4 and 0.5 answer an offer and show nothing unless a chat message has come from that address before. To make
//! the chat they ask what the address is, and an offer that comes meanwhile is lost. Their in-band receiving always fails,
//! although they announce it. So a short message goes before the session-initiate and is confirmed first, and the leg is
//! SOCKS5 or nothing.

use jid::BareJid;

/// Returns the text of the message that goes before a file of `caller`. `is_plain`: nothing encrypts it from end to end,
/// and the users are told so.
pub(super) fn greeting(caller: &BareJid, is_plain: bool) -> String {
    let end = if is_plain { ", which is not encrypted from end to end" } else { "" };
    format!(
        "{caller} sends you a file by way of this address{end}. Write to {caller}: messages to this address are not delivered"
    )
}

/// Returns why a file cannot go to `callee`.
pub(super) fn needs_socks5(callee: &BareJid, why: &str) -> String {
    format!("{callee} uses Dino, which receives files over SOCKS5 only, and {why}")
}
