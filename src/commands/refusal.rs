//! Why a command is refused. `src/front/refusal.rs` says it to the user.

use fingerpost_wire::stanza::Refusal;

use crate::registry::refusal::RegistryRefusal;

/// Why a command is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandRefusal {
    /// The user is not an administrator.
    AdminsOnly,
    /// There is no such command.
    NoSuchCommand,
    /// There is no such session of this command.
    NoSuchSession,
    /// The user took too long.
    Expired,
    /// Not an action of XEP-0050.
    UnknownAction,
    /// No form came before the first.
    NothingBefore,
    /// No command is open that could be cancelled.
    NothingToCancel,
    /// The page shown is the first.
    FirstPage,
    /// The page shown does not have that action.
    NotOnThisPage,
    /// The form is larger than a command may be.
    TooMuchInput,
    /// The input is not valid, for this reason, and there is no form to show again.
    Input(String),
    /// There is no place for another open command.
    TooManyForms,
    /// A row of a table is missing.
    Failed,
    /// The registry refuses it.
    Registry(RegistryRefusal),
    /// A part of the request breaks the rules of its protocol.
    Wire(Refusal),
}

impl From<RegistryRefusal> for CommandRefusal {
    fn from(refusal: RegistryRefusal) -> Self {
        Self::Registry(refusal)
    }
}

impl From<Refusal> for CommandRefusal {
    fn from(refusal: Refusal) -> Self {
        Self::Wire(refusal)
    }
}
