//! Every setting, written once: its name, type, default, purpose and reader, and whether it takes effect at a reload or only after
//! a restart. All else follows: [`Config`], the annotated default, the environment's variables, docs/CONFIGURATION.md.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "the text about a setting is also the operator's, where brackets are not links"
)]

use std::path::PathBuf;
use std::time::Duration;

use fingerpost_secure::redact::Secret;
use fingerpost_wire::size;
use jid::BareJid;

use super::{
    error::ConfigError,
    file::Written,
    keys::{Sections, Setting},
    values::{
        ALLOWED, DAY, Format, LEVELS, PLAIN, POLICIES, SHORTEST, VISIBILITIES, address, admin,
        bare, boolean, choice, database_url, domain, duration, level, list, name, number,
        one_or_several, own_address, path, secret, segment, status_address, text, told_address,
        uri, user,
    },
};
use crate::{
    registry::model::Visibility,
    sessions::{PlainFiles, hints::VerdictPolicy},
};

macro_rules! has_default {
    (default) => {
        true
    };
    (example) => {
        false
    };
}

/// A setting without a default is commented out.
macro_rules! comment {
    (default) => {
        ""
    };
    (example) => {
        "# "
    };
}

macro_rules! needs_restart {
    (reload) => {
        false
    };
    (restart) => {
        true
    };
}

/// Defines the configuration. A line is: name and type, `default` with a value or `example` with one, the reader of a written
/// value, and when a new value takes effect.
macro_rules! settings {
    (
        $(#![doc = $intro:literal])+
        $(
            $(#[doc = $title:literal])+
            $section:ident: $Section:ident {$(
                $(#[doc = $about:literal])+
                $key:ident: $type:ty, $how:ident $shown:tt, $read:expr, $when:ident;
            )+}
        )+
    ) => {
        /// Every setting with its default and its purpose, as TOML.
        pub const DEFAULT_TEXT: &str = concat!(
            $("#", $intro, "\n",)+
            $(
                "\n[", stringify!($section), "]\n",
                $(
                    $("#", $about, "\n",)+
                    comment!($how), stringify!($key), " = ", stringify!($shown), "\n",
                )+
            )+
        );

        /// Every section with its settings.
        pub const SECTIONS: Sections = &[$((stringify!($section), &[$(Setting {
            key: stringify!($key),
            shown: stringify!($shown),
            has_default: has_default!($how),
            about: &[$($about),+],
        }),+])),+];

        /// The whole configuration.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Config {
            $($(#[doc = $title])+ pub $section: $Section,)+
        }

        $(
            $(#[doc = $title])+
            #[derive(Clone, Debug, PartialEq)]
            pub struct $Section {
                $($(#[doc = $about])+ pub $key: $type,)+
            }
        )+

        impl Config {
            /// Reads all settings, each by itself.
            pub(super) fn read(written: &Written) -> Result<Self, ConfigError> {
                Ok(Self {
                    $($section: {
                        let section = written.section(stringify!($section));
                        $Section {
                            $($key: section.$how(stringify!($key), stringify!($shown), $read)?,)+
                        }
                    },)+
                })
            }

            /// Returns all settings that take effect only after a restart, and whether each differs in `new`.
            pub(super) fn after_restart(&self, new: &Self) -> Vec<(&'static str, bool)> {
                let mut settings = Vec::new();
                $($(if needs_restart!($when) {
                    let name = concat!(stringify!($section), ".", stringify!($key));
                    settings.push((name, self.$section.$key != new.$section.$key));
                })+)+
                settings
            }

            /// Returns what a reload takes of `new`: all but the settings that take effect only after a restart.
            pub fn reloaded(&self, new: &Self) -> Self {
                Self {
                    $($section: $Section {
                        $($key: if needs_restart!($when) { self } else { new }.$section.$key.clone(),)+
                    },)+
                }
            }
        }
    };
}

settings! {
    //! Fingerpost: every setting with its default. Settings that are commented out have no fixed default.
    //! Durations are text such as "500ms", "10s", "5m" or "1h". Any setting may also come from the environment:
    //! FINGERPOST_COMPONENT__SECRET sets `secret` in [component], and overrides this file.

    /// The component and its XMPP server.
    component: ComponentSettings {
        /// The component's own address, as the XMPP server knows it. Required.
        jid: BareJid, default "xtls.example.org", domain, restart;
        /// host:port of the XMPP server's component port (XEP-0114). For the nodes of a cluster, write a list: ["node1:5347",
        /// "node2:5347"]. They are tried in this order, after each loss of the link from the first on. In the environment, separate
        /// them by commas.
        server: Vec<String>, default "127.0.0.1:5347", one_or_several("\"host:port\"", address), restart;
        /// The secret shared with the XMPP server: the secret itself; then let no other user read this file. Set only one of `secret` and
        /// `secret_file`. If neither is set, the component reads the file `secret` in $CREDENTIALS_DIRECTORY (systemd's LoadCredential=), or
        /// else the file `secret` beside this one, which `fingerpost attach` creates.
        secret: Secret, example "…", text("a text that is not empty", secret), restart;
        /// A file that contains only the secret. A path that begins with $CREDENTIALS_DIRECTORY/ is in the directory of systemd's
        /// LoadCredential=.
        secret_file: Option<PathBuf>, example "/run/secrets/fingerpost", text("a path", path), reload;
        /// The name shown in service discovery.
        name: String, default "Fingerpost", text("a name of 1 to 100 characters", name), reload;
        /// Contact addresses of the operators, shown there too (XEP-0157).
        contact: Vec<String>, example ["mailto:admin@example.org", "xmpp:admin@example.org"],
            list("an address such as \"mailto:admin@example.org\"", uri), reload;
        /// The longest stanza that is sent to the XMPP server, in bytes. The server ends the link if a stanza exceeds its limit.
        /// The default is safe with Prosody (component_stanza_size_limit, 524288 unless set) and ejabberd (max_stanza_size of the
        /// component's listener, no limit unless set); `fingerpost check --online` measures the limit. Longer answers come in pages;
        /// longer stanzas of users are refused. Below 40000 users cannot read back their largest certificates.
        max_stanza_bytes: usize, default 500000, number(size::LEAST, size::MOST), restart;
    }

    /// The database of keys.
    database: DatabaseSettings {
        /// Where keys are kept: sqlite:PATH, sqlite::memory: for a try-out, or postgres://USER:PASSWORD@HOST/DATABASE, which several
        /// Fingerposts may share. HOST may be several, as in host1:5432,host2:5432 or [::1]:5432: the one that takes changes is used.
        url: String, default "sqlite:fingerpost.db", database_url, restart;
        /// Connections held open at most; on PostgreSQL up to two more, for notices of changes and for other instances.
        max_connections: u32, default 8, number(1, 1000), restart;
        /// Whether url leads to a connection pooler that gives each transaction another connection to PostgreSQL, such as PgBouncer
        /// with pool_mode = transaction.
        pooler: bool, default false, boolean, restart;
        /// Whether `serve` brings the schema up to date itself; if not, run `fingerpost migrate`.
        migrate: bool, default true, boolean, reload;
    }

    /// SOCKS5 streams.
    socks5: Socks5Settings {
        /// The addresses that accept SOCKS5 connections; [] switches SOCKS5 off. One of SOCKS5 and [ibb] must be on: without both,
        /// `serve` and `check` end with status 78.
        listen: Vec<String>, default ["[::]:7625"], list("\"address:port\"", own_address), restart;
        /// The addresses that clients are told; by default the component's address with the listening port. Use names: most clients
        /// on IPv6-only networks cannot reach an IPv4 address.
        advertise: Vec<(String, u16)>, example ["proxy.example.org:7625"], list("\"host:port\" that clients can reach", told_address), reload;
        /// Whether a load balancer in front sends the PROXY protocol (v1 or v2).
        proxy_protocol: bool, default false, boolean, restart;
        /// The largest TCP segment of SOCKS5 connections in bytes, both ways. 0: the two TCP ends choose the size. 1220 fits every path
        /// that IPv6 allows, even if routers silently drop larger packets. It makes large transfers slower.
        max_segment: u32, default 0, segment, restart;
    }

    /// Streams inside XMPP.
    ibb: IbbSettings {
        /// Whether streams may run inside XMPP itself where SOCKS5 fails. Must be true if socks5.listen is [].
        enabled: bool, default true, boolean, reload;
        /// Bytes in one block on the component's own legs.
        block_size: u16, default 8192, number(256, u16::MAX), reload;
        /// Unacknowledged blocks, per direction, to which a stream grows quickly. It begins with fewer, grows beyond them slowly while
        /// answers come as fast as before, and shrinks when a server or a client is slow.
        window: u16, default 16, number(1, 256), reload;
        /// Bytes that all in-band streams together may hold or have under way; one user gets a quarter. Each stream reserves one block; a
        /// new stream without room for that is refused. When the rest is used up, windows no longer grow, and streams go on with one
        /// block at a time. Only streams whose clients send without waiting, as by message, end then.
        memory: usize, default 67108864, number(1 << 20, 1 << 40), reload;
        /// How long a user's client may leave blocks unacknowledged. Servers keep a client that has lost its connection for some
        /// minutes (XEP-0198). Until then the stream waits, and both users are told. Keep limits.idle_timeout longer than this.
        silence_timeout: Duration, default "5m", duration(SHORTEST, DAY), reload;
    }

    /// Brokered sessions.
    broker: BrokerSettings {
        /// Refuse sessions without TLS, and end streams that do not start with a TLS ClientHello.
        require_tls: bool, default true, boolean, reload;
        /// Nevertheless, file transfers without TLS (XEP-0234, XEP-0096), as ordinary clients offer them: deny | mark (broker them, and
        /// say in their stanzas, the log, the metrics and the status page that nothing encrypts them from end to end) | allow (the
        /// same, but without a word in their stanzas). Both let files pass that JET or OMEMO encrypts. Both translate between the two
        /// protocols for clients that have one of them alone.
        plain: PlainFiles, default "deny", choice(PLAIN), reload;
        /// For a fingerprint that the registry has never seen: annotate (pass it on with a hint) | strip (remove it from the offer) |
        /// reject (refuse the session).
        unknown: VerdictPolicy, default "annotate", choice(POLICIES), reload;
        /// For a fingerprint that belongs to none of the user's registered keys: annotate | strip | reject, as for `unknown`.
        mismatch: VerdictPolicy, default "annotate", choice(POLICIES), reload;
        /// For the fingerprint of a revoked key: annotate | strip | reject, as for `unknown`.
        revoked: VerdictPolicy, default "reject", choice(POLICIES), reload;
        /// Whether two users' programs may agree on a direct connection between them, beside the component: allow | deny. With deny the
        /// component removes their question from the sessions that it brokers, and tells no user its address.
        direct: bool, default "allow", choice(ALLOWED), reload;
    }

    /// The registry of keys.
    registry: RegistrySettings {
        /// The visibility of a new user's keys: everyone | local | listed | nobody.
        visibility: Visibility, default "everyone", choice(VISIBILITIES), reload;
        /// The most active keys of one user. In all, active or not, a user may have four times as many, and 32 KiB of certificates
        /// for each.
        keys_per_user: u32, default 32, number(1, 10_000), reload;
        /// Read the OpenPGP keys (XEP-0373) that users publish.
        import_pep: bool, default true, boolean, reload;
    }

    /// Access rights.
    access: AccessSettings {
        /// Addresses and domains that may use the service, ["*"] for anyone; by default the component's parent domain.
        users: Vec<String>, example ["example.org"], list("a bare JID, a domain or \"*\"", user), reload;
        /// Addresses that may administer it.
        admins: Vec<String>, default [], list("a bare JID such as \"admin@example.org\"", admin), reload;
        /// Addresses and domains that may not use it; overrides the other lists.
        blocked: Vec<String>, default [], list("a bare JID or a domain", bare), reload;
    }

    /// Limits on numbers and times.
    limits: LimitSettings {
        /// Sessions at the same time, in all.
        sessions: usize, default 10000, number(1, 1_000_000), reload;
        /// Sessions at the same time of one user.
        sessions_per_user: usize, default 32, number(1, 1_000_000), reload;
        /// Requests of one user per second; bursts may have four times as many.
        requests_per_second: u32, default 20, number(1, 1_000_000), reload;
        /// SOCKS5 connections from one address (IPv4 address, IPv6 /64) that wait for their transfer; further ones get the reply "not
        /// allowed". Activated transfers, and connections that a brokered session expects, do not count.
        connections_per_ip: usize, default 64, number(1, 1_000_000), reload;
        /// The speed of one session in bytes per second, not of a user; 0 is unlimited.
        bytes_per_second: u64, default 0, number(0, 1_000_000_000_000), reload;
        /// How long SOCKS5 greeting and request may take.
        handshake_timeout: Duration, default "10s", duration(SHORTEST, DAY), reload;
        /// How long a transfer may be connected but not activated, and a session without a transport. A person who has to accept
        /// a file has this time too.
        activation_timeout: Duration, default "1m", duration(SHORTEST, DAY), reload;
        /// How long a stream may move no byte in either direction. Keep it longer than ibb.silence_timeout.
        idle_timeout: Duration, default "10m", duration(SHORTEST, DAY * 30), reload;
        /// How long sessions may take to end by themselves when the program stops.
        drain_timeout: Duration, default "30s", duration(Duration::ZERO, DAY), reload;
    }

    /// Health, metrics, status page.
    http: HttpSettings {
        /// Health, readiness, metrics and the status page; "" is off.
        listen: Option<String>, default "127.0.0.1:7626", text("\"address:port\" or \"\"", status_address), restart;
    }

    /// The log.
    log: LogSettings {
        /// error | warn | info | debug | trace, or a filter such as "info,fingerpost::sessions=debug".
        level: String, default "info", text(LEVELS, level), reload;
        /// text | json
        format: Format, default "text", choice(&[("text", Format::Text), ("json", Format::Json)]), restart;
    }
}
