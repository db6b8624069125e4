//! What clients show of the component as a contact: its name, icon, description and help.
//!
//! `deploy/icon/draw.py` draws the icon. Clients find it by the hash in the component's presence and fetch it from the vCard
//! (XEP-0054, XEP-0153), or as items of publish-subscribe at the component's address (XEP-0084), as they do with a user's.

use std::sync::LazyLock;

use base64::{Engine, engine::general_purpose::STANDARD};
use data_encoding::HEXLOWER;
use fingerpost_wire::{ns, xml};
use jid::BareJid;
use minidom::Element;
use sha1::{Digest, Sha1};

/// The icon, and how wide and high it is.
const ICON: &[u8] =
    include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/icon/fingerpost.png"));
const SIZE: &str = "64";
const TYPE: &str = "image/png";
const DESCRIPTION: &str = "Connects users for transfers that are encrypted from end to end, and keeps a registry \
                           of their public keys. Write \"help\" to this address.";

/// The hash of the icon: SHA-1, in hex.
static HASH: LazyLock<String> = LazyLock::new(|| HEXLOWER.encode(&Sha1::digest(ICON)));

fn with_text(name: &str, namespace: &str, text: &str) -> Element {
    let mut element = Element::bare(name, namespace);
    element.append_text(text);
    element
}

/// Returns the component's vCard (XEP-0054).
pub(super) fn vcard(name: &str, component: &BareJid) -> Element {
    let mut card = Element::bare("vCard", ns::VCARD);
    // Opens a chat with the component (XEP-0147).
    let help = format!("xmpp:{component}?message;body=help");
    for (field, text) in [
        ("FN", name),
        ("NICKNAME", name),
        ("JABBERID", component.as_str()),
        ("URL", &help),
        ("DESC", DESCRIPTION),
    ] {
        card.append_child(with_text(field, ns::VCARD, text));
    }
    let mut photo = Element::bare("PHOTO", ns::VCARD);
    photo.append_child(with_text("TYPE", ns::VCARD, TYPE));
    photo.append_child(with_text("BINVAL", ns::VCARD, &STANDARD.encode(ICON)));
    card.append_child(photo);
    card
}

/// Adds the icon's hash to a presence (XEP-0153).
pub(super) fn announce(presence: &mut Element) {
    let mut update = Element::bare("x", ns::VCARD_UPDATE);
    update.append_child(with_text("photo", ns::VCARD_UPDATE, &HASH));
    presence.append_child(update);
}

/// Returns the answer to a request for items: the icon and its description (XEP-0084), or the nickname (XEP-0172). `None` if
/// there is no such node, or no such item.
pub(super) fn items(pubsub: &Element, name: &str) -> Option<Element> {
    let asked = pubsub.get_child("items", ns::PUBSUB)?;
    let node = asked.attr("node")?;
    let (id, payload) = match node {
        ns::AVATAR_DATA => (&**HASH, with_text("data", ns::AVATAR_DATA, &STANDARD.encode(ICON))),
        ns::AVATAR_METADATA => {
            let mut metadata = Element::bare("metadata", ns::AVATAR_METADATA);
            let bytes = ICON.len().to_string();
            let info = [
                ("bytes", bytes.as_str()),
                ("id", &HASH),
                ("type", TYPE),
                ("width", SIZE),
                ("height", SIZE),
            ];
            metadata.append_child(xml::element("info", ns::AVATAR_METADATA, &info));
            (&**HASH, metadata)
        }
        ns::NICK => ("current", with_text("nick", ns::NICK, name)),
        _ => return None,
    };
    let mut wanted = asked.children().filter(|child| child.is("item", ns::PUBSUB)).peekable();
    if wanted.peek().is_some() && !wanted.any(|item| item.attr("id") == Some(id)) {
        return None;
    }
    let mut item = xml::element("item", ns::PUBSUB, &[("id", id)]);
    item.append_child(payload);
    let mut items = xml::element("items", ns::PUBSUB, &[("node", node)]);
    items.append_child(item);
    let mut pubsub = Element::bare("pubsub", ns::PUBSUB);
    pubsub.append_child(items);
    Some(pubsub)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(inside: &str) -> Option<Element> {
        let text = format!("<pubsub xmlns='{}'>{inside}</pubsub>", ns::PUBSUB);
        items(&text.parse().unwrap(), "Post")
    }

    #[test]
    fn the_icon_is_a_small_picture_of_the_size_that_is_told() {
        assert!(ICON.starts_with(b"\x89PNG") && ICON.len() < 4096);
        let size: u32 = SIZE.parse().unwrap();
        assert_eq!(ICON[16..24], [size.to_be_bytes(), size.to_be_bytes()].concat());
    }

    #[test]
    fn the_icon_is_what_its_script_draws() {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/icon/draw.py");
        let drawn = std::process::Command::new("python3").args([script, "--check"]).status();
        assert!(drawn.unwrap().success());
    }

    #[test]
    fn items_are_answered_by_node_and_id() {
        let item = |inside: &str| {
            let answer = asked(inside).unwrap();
            let items = answer.get_child("items", ns::PUBSUB).unwrap();
            let item = items.get_child("item", ns::PUBSUB).unwrap().clone();
            (item.attr("id").unwrap().to_owned(), item.children().next().unwrap().text())
        };
        let (id, data) = item("<items node='urn:xmpp:avatar:data'/>");
        assert_eq!((id.as_str(), STANDARD.decode(&data).unwrap().as_slice()), (&**HASH, ICON));
        let by_id = format!("<items node='urn:xmpp:avatar:data'><item id='{id}'/></items>");
        assert_eq!(item(&by_id).1, data);
        assert_eq!(item("<items node='urn:xmpp:avatar:metadata'/>").0, id);
        let nick = format!("<items node='{}'/>", ns::NICK);
        assert_eq!(item(&nick), ("current".to_owned(), "Post".to_owned()));
        for none in [
            "",
            "<items node='other'/>",
            "<items/>",
            "<items node='urn:xmpp:avatar:data'><item id='x'/></items>",
        ] {
            assert_eq!(asked(none), None, "{none}");
        }
    }
}
