//! The names of all settings.

/// Every section with its keys.
pub(super) const KEYS: &[(&str, &[&str])] = &[
    (
        "component",
        &["jid", "server", "secret", "secret_file", "name", "contact", "max_stanza_bytes"],
    ),
    ("database", &["url", "max_connections", "pooler", "migrate"]),
    ("socks5", &["listen", "advertise", "proxy_protocol", "max_segment"]),
    ("ibb", &["enabled", "block_size", "window", "memory", "silence_timeout"]),
    ("broker", &["require_tls", "unknown", "mismatch", "revoked"]),
    ("registry", &["visibility", "keys_per_user", "import_pep"]),
    ("access", &["users", "admins", "blocked"]),
    (
        "limits",
        &[
            "sessions",
            "sessions_per_user",
            "requests_per_second",
            "connections_per_ip",
            "bytes_per_second",
            "handshake_timeout",
            "activation_timeout",
            "idle_timeout",
            "drain_timeout",
        ],
    ),
    ("http", &["listen"]),
    ("log", &["level", "format"]),
];

/// Returns the known word that `word` was probably meant to be.
pub(super) fn closest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|known| (strsim::levenshtein(word, known), *known))
        .filter(|(distance, known)| *distance <= 1 + known.len() / 4)
        .min()
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_the_word() {
        let keys = ["jid", "server", "secret", "secret_file", "name"];
        assert_eq!(closest("sever", &keys), Some("server"));
        assert_eq!(closest("secrt", &keys), Some("secret"));
        assert_eq!(closest("colour", &keys), None);
    }
}
