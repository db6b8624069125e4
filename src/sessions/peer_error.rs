//! The errors of users and their servers: which may mean that a user is gone, and how they are passed on.

use fingerpost_wire::{ns, stanza::Condition};
use minidom::Element;

/// Returns the error of a user or its server as it is passed on: marked as theirs, and without conditions that only the
/// component or the asker's server may use.
pub(crate) fn of_peer(mut error: Element) -> Element {
    for node in error.take_nodes() {
        let is_others = node
            .as_element()
            .is_some_and(|child| child.has_ns(ns::HINTS) || child.has_ns(ns::BLOCKING_ERRORS));
        if !is_others {
            error.append_node(node);
        }
    }
    error.append_child(Element::bare("peer", ns::HINTS));
    error
}

/// Returns whether an error to a session-initiate says that a client, or its server in its place, cannot handle it, so
/// that another client may.
pub(super) fn is_for_others(error: &Element) -> bool {
    is_gone(error)
        || matches!(
            Condition::of(error),
            Some(
                Condition::FeatureNotImplemented
                    | Condition::NotAcceptable
                    | Condition::NotAllowed
                    | Condition::ResourceConstraint
            )
        )
}

/// Returns whether an error may come from a server whose connection to another server has just broken.
pub(super) fn is_undelivered(error: &Element) -> bool {
    matches!(
        Condition::of(error),
        Some(
            Condition::RecipientUnavailable
                | Condition::RemoteServerNotFound
                | Condition::RemoteServerTimeout
        )
    )
}

/// Returns whether an error says that the user's program does not know the session, which only that program can say.
pub(super) fn is_unknown(error: &Element) -> bool {
    error.has_child("unknown-session", ns::JINGLE_ERRORS)
}

/// Returns whether an error says that the user, or its session, does not exist.
pub(super) fn is_gone(error: &Element) -> bool {
    is_unknown(error)
        || matches!(
            Condition::of(error),
            Some(
                Condition::Gone
                    | Condition::ItemNotFound
                    | Condition::RecipientUnavailable
                    | Condition::RemoteServerNotFound
                    | Condition::ServiceUnavailable
            )
        )
}
