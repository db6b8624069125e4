//! In-band bytestreams of clients that do what the specification allows and nobody likes.

use serde_json::json;

use crate::support::programs::{Component, Options, script};
use crate::support::servers::{Kind, Server};

/// Nothing slows a sender by message down: what it sends at once is held, up to a share, and arrives whole.
fn blocks_by_message_arrive(kind: Kind) {
    let server = Server::start(kind);
    let more = "[broker]\nrequire_tls = false\n".to_owned();
    let component = Component::start(&server, &Options { more, ..Options::default() });
    let report = script("ibb_messages.py", &server, json!({"bytes": 10 << 20, "timeout": 140}));
    assert_eq!(report["sent"], report["received"], "{report}\n{}", component.log());
    assert_eq!(report["reason"], "success", "{report}");
}

#[test]
fn ten_megabytes_by_message_arrive_at_prosody() {
    blocks_by_message_arrive(Kind::Prosody);
}

#[test]
fn ten_megabytes_by_message_arrive_at_ejabberd() {
    blocks_by_message_arrive(Kind::Ejabberd);
}
