//! What the database gives and takes, besides keys.

use std::{fmt, time::Duration};

use fingerpost_wire::key::KeyId;
use jid::{BareJid, Jid};
use time::OffsetDateTime;

use crate::registry::{
    forgotten::{Forgotten, Revoked},
    model::{AuditEvent, Key, Party, Settings},
};

/// What other programs have changed in a shared database.
#[derive(Debug, PartialEq, Eq)]
pub enum ExternalChanges {
    /// Nothing.
    None,
    /// These users have changed, and perhaps the block list.
    Of {
        /// The users.
        owners: Vec<BareJid>,
        /// Whether the block list has changed.
        blocks: bool,
    },
    /// Perhaps everything.
    Anything,
}

/// The result of adding a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added {
    /// The stored key.
    pub key: Key,
    /// Whether it is new.
    pub fresh: bool,
    /// Whether anything has changed: the key is new, more complete, or replaces another one.
    pub changed: bool,
    /// Whether its own certificate has revoked it.
    pub revoked: bool,
    /// Other users that have a key with one of its prints.
    pub also_owned_by: Vec<BareJid>,
}

/// The registry's record of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// All keys the user has ever had, oldest first.
    pub keys: Vec<Key>,
    /// The user's visibility settings, if any.
    pub settings: Option<Settings>,
    /// What stays revoked though the keys are deleted.
    pub forgotten: Forgotten,
}

/// What the end of an account's life came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetiredAccount {
    /// How many keys there were.
    pub keys: usize,
    /// Users who had named the account among those who may see their keys.
    pub named_by: Vec<BareJid>,
}

/// A user or a domain that an admin has blocked by command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockEntry {
    /// The address.
    pub jid: BareJid,
    /// Why, for other admins.
    pub reason: String,
    /// Since when.
    pub at: OffsetDateTime,
}

/// A component's own certificate and private key.
#[derive(Clone, PartialEq, Eq)]
pub struct OwnIdentity {
    /// The component's address.
    pub component: BareJid,
    /// The certificate, DER.
    pub certificate: Vec<u8>,
    /// The private key, PKCS#8.
    pub private_key: Vec<u8>,
}

impl fmt::Debug for OwnIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnIdentity").field("component", &self.component).finish_non_exhaustive()
    }
}

/// A row of the audit log with everything in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRow {
    /// When.
    pub at: OffsetDateTime,
    /// The owner of the key.
    pub owner: Party,
    /// `user`, `admin` or `offline`.
    pub actor_kind: String,
    /// The user that did it, unless it was done offline.
    pub actor: Option<Party>,
    /// The key, if it is about one.
    pub key: Option<KeyId>,
    /// What happened.
    pub event: AuditEvent,
}

/// All that is in a database and is not of one run of the component.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Keys with their material.
    pub keys: Vec<(Key, Option<Vec<u8>>)>,
    /// The users that may see the keys of others.
    pub settings: Vec<(BareJid, Settings)>,
    /// The users and domains that a command has blocked.
    pub blocks: Vec<BlockEntry>,
    /// The components' own certificates.
    pub identities: Vec<OwnIdentity>,
    /// The audit log, oldest first.
    pub log: Vec<LogRow>,
    /// What hashes of deleted users are made with.
    pub salts: Vec<Vec<u8>>,
    /// What stays revoked though the keys are deleted.
    pub revoked: Vec<Revoked>,
}

/// One user's side of an open session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenSide {
    /// The session's name here, the same on both sides.
    pub session: String,
    /// The user's full JID.
    pub user: Jid,
    /// The address under which the other user appears here.
    pub mask: Jid,
    /// The Jingle session id on this side.
    pub sid: String,
    /// The Jingle namespace spoken here.
    pub namespace: String,
    /// What a later run needs to go on with the session; `None` if that is not possible.
    pub renewable: Option<RenewableSide>,
}

/// One user's side of an open session with which a later run can go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenewableSide {
    /// Whether this user began the session: its role in Jingle.
    pub role: String,
    /// The name of the session's content.
    pub content: String,
    /// The namespace of the Jingle transport of this leg.
    pub transport: String,
}

/// One of the Fingerposts that serve a component together.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// Its name, chosen at its start.
    pub id: String,
    /// Whether it handles all instances' stanzas.
    pub leads: bool,
    /// Whether its link to the XMPP server is up.
    pub linked: bool,
    /// The addresses that it announces to users, as text.
    pub advertise: String,
    /// The time since its last sign of life.
    pub age: Duration,
    /// How long it has been seen with this last sign of life; zero in the database's answer.
    pub watched: Duration,
    /// A mark of its last sign of life: when that was by the clock of the database, microseconds since 1970.
    pub beat: i64,
}

impl Instance {
    /// The silence after which an instance is gone.
    pub(crate) const SILENT: Duration = Duration::from_secs(15);

    /// Returns whether it has recently given a sign of life.
    pub fn is_alive(&self) -> bool {
        self.age < Self::SILENT
    }
}

/// An instance that has led, and the mark of its last sign of life: while it has that mark, the lead may be taken from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Silent {
    pub(super) id: String,
    pub(super) beat: i64,
}

impl Silent {
    /// An instance as it was seen.
    pub(crate) fn of(instance: &Instance) -> Self {
        Self { id: instance.id.clone(), beat: instance.beat }
    }
}

/// How an instance has come to hold the lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Won {
    /// It has led before, and no other one since.
    Again,
    /// Another one, or nobody, has led before.
    Anew,
}

/// The database's name for a connection; it stays unique when another connection gets the same number later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backend {
    /// The number of its process.
    pub(super) pid: i32,
    /// When it began, microseconds since 1970.
    pub(super) began: i64,
}

/// A message from one instance to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Parcel {
    /// A stanza, as XML.
    Stanza(String),
    /// The id of a ping that an instance has sent to itself.
    Echo(String),
}

/// A message that an instance receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// See [`Parcel::Stanza`].
    Stanza(String),
    /// A stanza that was too long to be sent: fetch it with [`Meeting::fetch`].
    Written(i64),
    /// See [`Parcel::Echo`].
    Echo(String),
    /// An instance leads no more, or has left: the rows tell.
    Left,
}
