//! Why a request of the registry is refused. `src/front/refusal.rs` says it to the user.

use fingerpost_wire::{key::State, stanza::Refusal};

use super::{model::NotAllowed, proof::ProofError, store::error::StoreError};

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistryRefusal {
    /// The asker names another user, but not by a bare JID.
    OwnerJid,
    /// There is no signature in base64.
    NoSignature,
    /// There are several signatures.
    SeveralSignatures(usize),
    /// The asker has not confirmed by its own address that all is to be deleted.
    Unconfirmed,
    /// No such request of type `get`.
    UnknownGet,
    /// No such request of type `set`.
    UnknownSet,
    /// A user who may see the keys is not named by a bare JID.
    AllowedJid,
    /// Too many users are named who may see the keys.
    TooManyAllowed,
    /// The id of a key is missing.
    NoKeyId,
    /// The key is missing.
    NoKey,
    /// There are several keys.
    SeveralKeys(usize),
    /// There are several materials in a key.
    SeveralMaterials(usize),
    /// The material of a key is not in base64.
    MaterialCode,
    /// XEP-0257: not the request for the list of certificates.
    NotItems,
    /// XEP-0257: not one of its three changes.
    UnknownChange,
    /// XEP-0257: the name is missing.
    NoName,
    /// XEP-0257: another certificate has the name.
    NameInUse,
    /// XEP-0257: the certificate is not in base64.
    CertificateCode,
    /// XEP-0257: the certificate is in a state that cannot change any more.
    Known(State),
    /// XEP-0257: no certificate has the name.
    NoSuchCertificate,
    /// XEP-0189: no key can be shown.
    NoPublicKey,
    /// A value is not valid, for this reason.
    Invalid(String),
    /// The rules of the registry forbid it.
    Rules(NotAllowed),
    /// The proof of a key is not valid.
    Proof(ProofError),
    /// The registry has failed. The log says why.
    Failed,
    /// A part of the request breaks the rules of its protocol.
    Wire(Refusal),
}

impl RegistryRefusal {
    /// Creates the refusal of a value.
    pub(super) fn invalid(error: impl std::fmt::Display) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<NotAllowed> for RegistryRefusal {
    fn from(error: NotAllowed) -> Self {
        Self::Rules(error)
    }
}

impl From<StoreError> for RegistryRefusal {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotAllowed(error) => error.into(),
            error => {
                tracing::error!(%error, "the registry failed");
                Self::Failed
            }
        }
    }
}

impl From<Refusal> for RegistryRefusal {
    fn from(refusal: Refusal) -> Self {
        Self::Wire(refusal)
    }
}
