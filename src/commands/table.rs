//! The commands that there are.

use std::pin::Pin;

use fingerpost_wire::ns;
use time::OffsetDateTime;

use super::{
    Commands,
    catalogue::{Language, Text},
    page::{CommandPage, CommandProgress, NoPage},
};

/// The next page of a command, when it is ready.
pub(super) type NextPage<'a> =
    Pin<Box<dyn Future<Output = Result<CommandPage, NoPage>> + Send + 'a>>;

/// Returns the page that follows the forms submitted so far.
type Handler = for<'a> fn(&'a Commands, &'a CommandProgress, OffsetDateTime) -> NextPage<'a>;

/// A command: its node, its title and what it takes.
#[derive(Debug)]
pub struct AdHocCommand {
    /// The part of the node after `urn:fingerpost:cmd:`.
    pub name: &'static str,
    pub(super) title: Text,
    /// The variables of the fields that a user may fill in, on all pages together.
    pub fields: &'static [&'static str],
    pub(super) handler: Handler,
}

impl AdHocCommand {
    /// Returns the whole node.
    pub fn node(&self) -> String {
        format!("{}{}", ns::COMMAND_NODES, self.name)
    }

    /// Returns the title for people.
    pub fn title(&self, language: Language) -> &'static str {
        language.text(self.title)
    }
}

macro_rules! commands {
    ($($name:literal, $title:ident, [$($field:literal),*], $handler:ident;)*) => {
        [$(AdHocCommand {
            name: $name,
            title: Text::$title,
            fields: &[$($field),*],
            handler: |commands, progress, now| Box::pin(commands.$handler(progress, now)),
        }),*]
    };
}

/// The commands of users, in the order of the list.
#[rustfmt::skip]
pub(super) static OF_USERS: [AdHocCommand; 9] = commands![
    "keys", Keys, ["id", "then", "method", "label", "material", "print", "replaces", "signature", "reason", "sure"], keys;
    "lookup", Lookup, ["jid"], lookup;
    "add", Add, ["method", "label", "material", "print", "replaces"], add;
    "revoke", Revoke, ["id", "reason", "sure"], revoke;
    "prove", Prove, ["id", "signature"], prove;
    "settings", Settings, ["visibility", "allowed"], settings;
    "sessions", Sessions, ["id"], sessions;
    "export", Export, [], export;
    "erase", Erase, ["confirm"], erase;
];

/// What admins may run, in the order in which it is listed.
#[rustfmt::skip]
pub(super) static OF_ADMINS: [AdHocCommand; 12] = commands![
    "admin:sessions", AdminSessions, ["jid", "id", "reason"], all_sessions;
    "admin:keys", AdminKeys, ["query"], search;
    "admin:attest", AdminAttest, ["id", "sure"], attest_key;
    "admin:revoke", AdminRevoke, ["id", "reason", "sure"], revoke_key;
    "admin:retire", AdminRetire, ["jid", "sure"], retire;
    "admin:block", AdminBlock, ["jid", "reason"], block;
    "admin:unblock", AdminUnblock, ["jid"], unblock;
    "admin:stats", AdminStats, [], stats;
    "admin:drain", AdminDrain, ["new"], drain;
    "admin:reload", AdminReload, [], reload;
    "admin:loglevel", AdminLogLevel, ["level"], log_level;
    "admin:audit", AdminAudit, ["jid"], audit;
];
