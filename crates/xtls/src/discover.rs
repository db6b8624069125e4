//! Finds the components with a registry that a user's own server lists (XEP-0030).

use std::{collections::BTreeSet, time::Duration};

use fingerpost_endpoint::{Endpoint, RequestKind};
use fingerpost_wire::{ns, xml};
use futures::future::join_all;
use jid::{BareJid, Jid};
use minidom::Element;
use tokio::time::timeout;

/// How long the server, and then each component, may take to answer a query of service discovery.
const DISCO: Duration = Duration::from_secs(5);
/// The most listed services that are asked what they are.
const ITEMS: usize = 32;

/// Returns the components by their names.
pub(super) async fn components(endpoint: &Endpoint) -> Vec<BareJid> {
    let ask = async |to: &Jid, namespace: &str| {
        let asked = endpoint.request(RequestKind::Get, to, Element::bare("query", namespace));
        timeout(DISCO, asked).await.ok()?.ok()?
    };
    let listed = match Jid::new(endpoint.jid().domain().as_str()) {
        Ok(server) => ask(&server, ns::DISCO_ITEMS).await,
        Err(_) => None,
    };
    let listed: BTreeSet<BareJid> = listed
        .iter()
        .flat_map(Element::children)
        .filter(|item| item.is("item", ns::DISCO_ITEMS) && item.attr("node").is_none())
        .filter_map(|item| BareJid::new(item.attr("jid")?).ok())
        .filter(|item| item.node().is_none())
        .take(ITEMS)
        .collect();
    // In parallel: one that does not answer must not use up the time of the others.
    let asked = listed.into_iter().map(async |item| {
        let info = ask(&Jid::from(item.clone()), ns::DISCO_INFO).await?;
        xml::features(&info).any(|feature| feature == ns::KEYS).then_some(item)
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// Returns the names of several components, for a message.
pub(super) fn names(components: &[BareJid]) -> String {
    components.iter().map(|jid| jid.as_str()).collect::<Vec<_>>().join(", ")
}
