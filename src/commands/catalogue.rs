//! The commands that there are.

use super::page::Command;

/// The commands of users, in the order of the list.
pub(super) const OF_USERS: [Command; 9] = [
    Command { name: "keys", title: "List my keys" },
    Command { name: "lookup", title: "Look up a user's keys" },
    Command { name: "add", title: "Add a key" },
    Command { name: "revoke", title: "Revoke a key" },
    Command { name: "prove", title: "Prove that a key is mine" },
    Command { name: "settings", title: "Choose who may see my keys" },
    Command { name: "sessions", title: "List my sessions, or end one" },
    Command { name: "export", title: "Export everything held about me" },
    Command { name: "erase", title: "Erase everything held about me" },
];

/// What admins may run, in the order in which it is listed.
pub(super) const OF_ADMINS: [Command; 12] = [
    Command { name: "admin:sessions", title: "All sessions: list or end them" },
    Command { name: "admin:keys", title: "Search keys" },
    Command { name: "admin:attest", title: "Attest a user's key" },
    Command { name: "admin:revoke", title: "Revoke a user's key" },
    Command { name: "admin:retire", title: "Retire an account" },
    Command { name: "admin:block", title: "Block a user or a domain" },
    Command { name: "admin:unblock", title: "Unblock a user or a domain" },
    Command { name: "admin:stats", title: "Statistics" },
    Command { name: "admin:drain", title: "Refuse new sessions, or accept them again" },
    Command { name: "admin:reload", title: "Reload the configuration" },
    Command { name: "admin:loglevel", title: "Change the log level" },
    Command { name: "admin:audit", title: "Read the audit log" },
];
