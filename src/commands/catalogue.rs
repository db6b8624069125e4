//! The commands that there are.

use super::page::AdHocCommand;

/// The commands of users, in the order of the list.
pub(super) const OF_USERS: [AdHocCommand; 9] = [
    AdHocCommand { name: "keys", title: "List my keys" },
    AdHocCommand { name: "lookup", title: "Look up a user's keys" },
    AdHocCommand { name: "add", title: "Add a key" },
    AdHocCommand { name: "revoke", title: "Revoke a key" },
    AdHocCommand { name: "prove", title: "Prove that a key is mine" },
    AdHocCommand { name: "settings", title: "Choose who may see my keys" },
    AdHocCommand { name: "sessions", title: "List my sessions, or end one" },
    AdHocCommand { name: "export", title: "Export everything held about me" },
    AdHocCommand { name: "erase", title: "Erase everything held about me" },
];

/// What admins may run, in the order in which it is listed.
pub(super) const OF_ADMINS: [AdHocCommand; 12] = [
    AdHocCommand { name: "admin:sessions", title: "All sessions: list or end them" },
    AdHocCommand { name: "admin:keys", title: "Search keys" },
    AdHocCommand { name: "admin:attest", title: "Attest a user's key" },
    AdHocCommand { name: "admin:revoke", title: "Revoke a user's key" },
    AdHocCommand { name: "admin:retire", title: "Retire an account" },
    AdHocCommand { name: "admin:block", title: "Block a user or a domain" },
    AdHocCommand { name: "admin:unblock", title: "Unblock a user or a domain" },
    AdHocCommand { name: "admin:stats", title: "Statistics" },
    AdHocCommand { name: "admin:drain", title: "Refuse new sessions, or accept them again" },
    AdHocCommand { name: "admin:reload", title: "Reload the configuration" },
    AdHocCommand { name: "admin:loglevel", title: "Change the log level" },
    AdHocCommand { name: "admin:audit", title: "Read the audit log" },
];
