//! Every XML namespace of the project, once, with its source.

/// Client streams (RFC 6120). All stanzas inside the program are in this namespace.
pub const CLIENT: &str = "jabber:client";
/// Component streams (XEP-0114); exists only at the edge of the component link.
pub const COMPONENT: &str = "jabber:component:accept";
/// The stream element (RFC 6120).
pub const STREAM: &str = "http://etherx.jabber.org/streams";
/// Stream errors (RFC 6120, 4.9).
pub const STREAM_ERRORS: &str = "urn:ietf:params:xml:ns:xmpp-streams";
/// STARTTLS (RFC 6120, 5).
pub const STARTTLS: &str = "urn:ietf:params:xml:ns:xmpp-tls";
/// Stanza errors (RFC 6120, 8.3).
pub const STANZA_ERRORS: &str = "urn:ietf:params:xml:ns:xmpp-stanzas";
/// Service discovery, information (XEP-0030).
pub const DISCO_INFO: &str = "http://jabber.org/protocol/disco#info";
/// Service discovery, items (XEP-0030).
pub const DISCO_ITEMS: &str = "http://jabber.org/protocol/disco#items";
/// Ad-hoc commands (XEP-0050).
pub const COMMANDS: &str = "http://jabber.org/protocol/commands";
/// Entity capabilities (XEP-0115).
pub const CAPS: &str = "http://jabber.org/protocol/caps";
/// Entity capabilities 2.0 (XEP-0390).
pub const CAPS_2: &str = "urn:xmpp:caps";
/// The node of the capabilities that the component announces for itself and for users.
pub const OWN_CAPS: &str = "urn:fingerpost:caps:0";
/// Data forms (XEP-0004).
pub const DATA: &str = "jabber:x:data";
/// The prefix of our commands' nodes.
pub const COMMAND_NODES: &str = "urn:fingerpost:cmd:";
/// Last activity (XEP-0012).
pub const LAST: &str = "jabber:iq:last";
/// Software version (XEP-0092).
pub const VERSION: &str = "jabber:iq:version";
/// Entity time (XEP-0202).
pub const TIME: &str = "urn:xmpp:time";
/// Contact addresses of a service (XEP-0157).
pub const SERVER_INFO: &str = "http://jabber.org/network/serverinfo";
/// Ping (XEP-0199).
pub const PING: &str = "urn:xmpp:ping";
/// In-band bytestreams (XEP-0047).
pub const IBB: &str = "http://jabber.org/protocol/ibb";
/// SOCKS5 bytestreams (XEP-0065).
pub const BYTESTREAMS: &str = "http://jabber.org/protocol/bytestreams";
/// Stream initiation (XEP-0095).
pub const SI: &str = "http://jabber.org/protocol/si";
/// Stream initiation of files (XEP-0096).
pub const SI_FILE: &str = "http://jabber.org/protocol/si/profile/file-transfer";
/// Feature negotiation (XEP-0020).
pub const FEATURE_NEG: &str = "http://jabber.org/protocol/feature-neg";
/// Jingle (XEP-0166).
pub const JINGLE: &str = "urn:xmpp:jingle:1";
/// Jingle as of 2009, as the first offers of end-to-end TLS used it.
pub const JINGLE_0: &str = "urn:xmpp:jingle:0";
/// Jingle errors (XEP-0166, 10).
pub const JINGLE_ERRORS: &str = "urn:xmpp:jingle:errors:1";
/// Jingle SOCKS5 bytestreams transport (XEP-0260).
pub const JINGLE_S5B: &str = "urn:xmpp:jingle:transports:s5b:1";
/// Jingle in-band bytestreams transport (XEP-0261).
pub const JINGLE_IBB: &str = "urn:xmpp:jingle:transports:ibb:1";
/// Jingle in-band bytestreams transport as of 2009.
pub const JINGLE_IBB_0: &str = "urn:xmpp:jingle:transports:ibb:0";
/// Jingle ICE transport (XEP-0371).
pub const JINGLE_ICE: &str = "urn:xmpp:jingle:transports:ice:0";
/// A raw TLS stream as Jingle application.
pub const APPS_TLS: &str = "urn:xmpp:jingle:apps:tls";
/// Jingle file transfer (XEP-0234).
pub const FILE_TRANSFER: &str = "urn:xmpp:jingle:apps:file-transfer:5";
/// All versions of XEP-0234 that clients use.
pub const FILE_TRANSFERS: [&str; 3] =
    ["urn:xmpp:jingle:apps:file-transfer:3", "urn:xmpp:jingle:apps:file-transfer:4", FILE_TRANSFER];
/// Jingle XML streams (XEP-0247).
pub const XMLSTREAM: &str = "urn:xmpp:jingle:apps:xmlstream:0";
/// Jingle message initiation (XEP-0353).
pub const JINGLE_MESSAGE: &str = "urn:xmpp:jingle-message:0";
/// Message carbons (XEP-0280).
pub const CARBONS: &str = "urn:xmpp:carbons:2";
/// The mark of messages that come late (XEP-0203).
pub const DELAY: &str = "urn:xmpp:delay";
/// The same before 2009 (XEP-0091).
pub const OLD_DELAY: &str = "jabber:x:delay";
/// Forwarded messages (XEP-0297).
pub const FORWARD: &str = "urn:xmpp:forward:0";
/// Messages of chat rooms to one user (XEP-0045).
pub const MUC_USER: &str = "http://jabber.org/protocol/muc#user";
/// Invitations to chat rooms (XEP-0249).
pub const MUC_INVITATION: &str = "jabber:x:conference";
/// The mark of encrypted messages (XEP-0380).
pub const EME: &str = "urn:xmpp:eme:0";
/// Message processing hints (XEP-0334).
pub const PROCESSING_HINTS: &str = "urn:xmpp:hints";
/// Stream management (XEP-0198).
pub const SM: &str = "urn:xmpp:sm:3";
/// Login in one step: SASL2 (XEP-0388).
pub const SASL2: &str = "urn:xmpp:sasl:2";
/// Bind 2 (XEP-0386).
pub const BIND2: &str = "urn:xmpp:bind:0";
/// Tokens for the next login (XEP-0484).
pub const FAST: &str = "urn:xmpp:fast:0";
/// The security offer beside the transport (the second stanza in docs/HISTORY.md).
pub const SECURITY_OFFER: &str = "urn:xmpp:security-offer";
/// Jingle Encrypted Transports (XEP-0391).
pub const JET: &str = "urn:xmpp:jingle:jet:0";
/// OMEMO as Conversations encrypted files with it before XEP-0391.
pub const AXOLOTL: &str = "eu.siacs.conversations.axolotl";
/// XTLS (ProtoXEP jingle-xtls 0.0.4).
pub const XTLS: &str = "urn:xmpp:jingle:security:xtls:0";
/// C2C TLS offer (XEP-0250).
pub const C2CTLS: &str = "urn:xmpp:tmp:c2ctls";
/// Public keys as XEP-0250 refers to them (XEP-0189 before 0.9).
pub const TMP_PUBKEY: &str = "urn:xmpp:tmp:pubkey";
/// Public keys (XEP-0189).
pub const PUBKEY: &str = "urn:xmpp:pubkey:2";
/// Certificates for SASL EXTERNAL (XEP-0257).
pub const SASLCERT: &str = "urn:xmpp:saslcert:1";
/// vCards (XEP-0054).
pub const VCARD: &str = "vcard-temp";
/// The hash of a vCard's icon in presence (XEP-0153).
pub const VCARD_UPDATE: &str = "vcard-temp:x:update";
/// The bytes of an icon (XEP-0084).
pub const AVATAR_DATA: &str = "urn:xmpp:avatar:data";
/// The description of an icon (XEP-0084).
pub const AVATAR_METADATA: &str = "urn:xmpp:avatar:metadata";
/// Nicknames (XEP-0172).
pub const NICK: &str = "http://jabber.org/protocol/nick";
/// Message delivery receipts (XEP-0184).
pub const RECEIPTS: &str = "urn:xmpp:receipts";
/// Publish-subscribe (XEP-0060).
pub const PUBSUB: &str = "http://jabber.org/protocol/pubsub";
/// OpenPGP for XMPP (XEP-0373).
pub const OPENPGP: &str = "urn:xmpp:openpgp:0";
/// The PEP node that lists a user's OpenPGP keys, and the prefix of the nodes with the keys (XEP-0373, 4).
pub const OPENPGP_KEYS: &str = "urn:xmpp:openpgp:0:public-keys";
/// Cryptographic hashes (XEP-0300).
pub const HASHES: &str = "urn:xmpp:hashes:2";
/// Result set management (XEP-0059).
pub const RSM: &str = "http://jabber.org/protocol/rsm";
/// Conditions for what exceeds a limit (XEP-0205).
pub const ERRORS: &str = "urn:xmpp:errors";
/// Our hints inside Jingle contents, and the profiles of methods.
pub const HINTS: &str = "urn:fingerpost:xtls:0";
/// External services of a server (XEP-0215).
pub const EXTDISCO: &str = "urn:xmpp:extdisco:2";
/// Blocking, errors (XEP-0191, 3.5).
pub const BLOCKING_ERRORS: &str = "urn:xmpp:blocking:errors";
/// The prefix of the namespace for names whose prefix a server has passed on without its declaration; the prefix
/// follows.
pub const UNDECLARED: &str = "urn:fingerpost:undeclared-prefix:";
/// Many files and directories in one session of `xtls`.
pub const FILE_SET: &str = "urn:fingerpost:set:0";
/// Files for a peer that knows a code, from `xtls send --code`.
pub const CODE: &str = "urn:fingerpost:code:0";
/// Direct paths below a TLS stream between two of our ends: their negotiation and reports, and observed addresses.
pub const PATHS: &str = "urn:fingerpost:paths:0";
/// Our registry's requests.
pub const KEYS: &str = "urn:fingerpost:keys:0";

#[cfg(test)]
mod tests {
    #[test]
    fn each_namespace_is_in_the_documentation_of_the_protocol() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/PROTOCOL.md");
        let page = std::fs::read_to_string(page).unwrap();
        let names: Vec<&str> = include_str!("ns.rs")
            .lines()
            .filter(|line| line.starts_with("pub const "))
            .filter_map(|line| line.split('"').nth(1))
            .collect();
        assert!(names.len() > 40, "{names:?}");
        let missing: Vec<_> =
            names.iter().filter(|name| !page.contains(&format!("`{name}`"))).collect();
        assert!(missing.is_empty(), "docs/PROTOCOL.md says nothing of {missing:?}");
    }
}
