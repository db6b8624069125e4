//! Errors as a kind, which a program can act on, and a sentence for a person.

use std::{error::Error as StdError, fmt, io};

use fingerpost_endpoint::Error;

/// What a program can do about an error. The first sixteen are the variants of [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// [`Error::Address`]
    Address,
    /// [`Error::Unreachable`]
    Unreachable,
    /// [`Error::Silent`]
    Silent,
    /// [`Error::NoComponent`]
    NoComponent,
    /// [`Error::Blocked`]
    Blocked,
    /// [`Error::BlockedByPeer`]
    BlockedByPeer,
    /// [`Error::Room`]
    Room,
    /// [`Error::Transport`]
    Transport,
    /// [`Error::Refused`]
    Refused,
    /// [`Error::Unsupported`]
    Unsupported,
    /// [`Error::Unverified`]
    Unverified,
    /// [`Error::Expired`]
    Expired,
    /// [`Error::Login`]
    Login,
    /// [`Error::Certificate`]
    Certificate,
    /// [`Error::Disconnected`]
    Disconnected,
    /// [`Error::Failed`]
    Failed,
    /// The stream ended without the peer's `close_notify`: what has arrived may be incomplete.
    Cut,
    /// A setting or an argument has no usable value.
    Argument,
    /// The object is in a state in which the call makes no sense: it is closed, or another call is under way.
    State,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 19] = [
        Self::Address,
        Self::Unreachable,
        Self::Silent,
        Self::NoComponent,
        Self::Blocked,
        Self::BlockedByPeer,
        Self::Room,
        Self::Transport,
        Self::Refused,
        Self::Unsupported,
        Self::Unverified,
        Self::Expired,
        Self::Login,
        Self::Certificate,
        Self::Disconnected,
        Self::Failed,
        Self::Cut,
        Self::Argument,
        Self::State,
    ];

    /// Returns the name, which is that of the Python exception without its `Error`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Address => "Address",
            Self::Unreachable => "Unreachable",
            Self::Silent => "Silent",
            Self::NoComponent => "NoComponent",
            Self::Blocked => "Blocked",
            Self::BlockedByPeer => "BlockedByPeer",
            Self::Room => "Room",
            Self::Transport => "Transport",
            Self::Refused => "Refused",
            Self::Unsupported => "Unsupported",
            Self::Unverified => "Unverified",
            Self::Expired => "Expired",
            Self::Login => "Login",
            Self::Certificate => "Certificate",
            Self::Disconnected => "Disconnected",
            Self::Failed => "Failed",
            Self::Cut => "Cut",
            Self::Argument => "Argument",
            Self::State => "State",
        }
    }
}

/// An error: its kind, and one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What a program can do.
    pub kind: Kind,
    /// What a person reads.
    pub text: String,
}

impl Fault {
    /// Creates an error.
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// Creates an error about an argument or a setting.
    pub fn argument(text: impl Into<String>) -> Self {
        Self::new(Kind::Argument, text)
    }

    /// Creates an error about the state of an object.
    pub fn state(text: impl Into<String>) -> Self {
        Self::new(Kind::State, text)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StdError for Fault {}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Address(_) => Kind::Address,
            Error::Unreachable(_) => Kind::Unreachable,
            Error::Silent(_) => Kind::Silent,
            Error::NoComponent(_) => Kind::NoComponent,
            Error::Blocked(_) => Kind::Blocked,
            Error::BlockedByPeer(_) => Kind::BlockedByPeer,
            Error::Room(_) => Kind::Room,
            Error::Transport(_) => Kind::Transport,
            Error::Refused(_) => Kind::Refused,
            Error::Unsupported(_) => Kind::Unsupported,
            Error::Unverified(_) => Kind::Unverified,
            Error::Expired(_) => Kind::Expired,
            Error::Login(_) => Kind::Login,
            Error::Certificate { .. } => Kind::Certificate,
            Error::Disconnected => Kind::Disconnected,
            error if is_cut(error) => Kind::Cut,
            _ => Kind::Failed,
        };
        Self { kind, text: error.to_string() }
    }
}

/// Returns whether the end of a stream without `close_notify` is below the error.
fn is_cut(error: &Error) -> bool {
    let mut below: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = below {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io.kind() == io::ErrorKind::UnexpectedEof;
        }
        below = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_stream_is_told_from_other_failures() {
        let of = |kind| Fault::from(Error::from(io::Error::new(kind, "it ended"))).kind;
        assert_eq!(of(io::ErrorKind::UnexpectedEof), Kind::Cut);
        assert_eq!(of(io::ErrorKind::ConnectionReset), Kind::Failed);
        assert_eq!(Fault::from(Error::Disconnected).kind, Kind::Disconnected);
    }

    #[test]
    fn no_two_kinds_have_one_name() {
        let mut names: Vec<_> = Kind::ALL.map(Kind::as_str).to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Kind::ALL.len());
    }
}
