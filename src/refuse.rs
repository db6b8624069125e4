//! The answers that refuse a request; the component counts each.

use fingerpost_wire::stanza::{Condition, Refusal, Stanza, Unreadable};
use minidom::Element;

use crate::metrics;

/// A stanza that can be refused.
pub(crate) trait Refuse {
    /// Returns the `type='error'` answer, and counts it.
    fn refuse(&self, refusal: impl Into<Refusal>) -> Element;
}

impl Refuse for Stanza {
    fn refuse(&self, refusal: impl Into<Refusal>) -> Element {
        let refusal = refusal.into();
        metrics::REFUSALS.count(&[refusal.condition.as_str()]);
        self.refusal(&refusal)
    }
}

/// Returns the answer to a request with an unreadable address, and counts it; `None` if it must not be answered.
pub(crate) fn refuse_address(unreadable: &Unreadable) -> Option<Element> {
    let refused = unreadable.address_refusal();
    match refused {
        Some(_) => metrics::REFUSALS.count(&[Condition::JidMalformed.as_str()]),
        None => metrics::STANZAS_DROPPED.count(&["address"]),
    }
    refused
}
