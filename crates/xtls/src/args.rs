//! The command line of `xtls`.

use std::{path::PathBuf, time::Duration};

use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use fingerpost_endpoint::{DirectPath, TransportKind};
use fingerpost_secure::identity::Algorithm;
use fingerpost_wire::{
    print::{HashKind, Method, Print},
    text,
};
use jid::{BareJid, Jid};
use serde::{Deserialize, Serialize};

/// An end-to-end TLS endpoint over XMPP: send and receive files, pipe, chat, manage keys.
#[derive(Debug, Parser)]
#[command(
    name = "xtls",
    version,
    after_help = "Exit status: 0 ok, 1 failed, 2 usage, 3 peer unreachable, 4 the peer's key could not be verified \
                  (nothing was sent), 5 refused."
)]
pub struct Cli {
    #[command(flatten)]
    pub(super) common: Common,
    #[command(subcommand)]
    pub(super) command: Command,
}

impl Cli {
    /// Returns the log filter: warnings, or more with each `-v`.
    pub fn log_filter(&self) -> &'static str {
        match self.common.verbose {
            0 => "error",
            // Strangers who find the port of a direct connection cause these warnings.
            1 => "warn,stun_types=off,fingerpost=info",
            _ => "warn,fingerpost=debug",
        }
    }
}

/// Reads the name of one of these transports. Help and completions list the names.
fn transports<const N: usize>(
    known: [TransportKind; N],
) -> impl TypedValueParser<Value = TransportKind> {
    let names = known.map(|kind| {
        PossibleValue::new(kind.as_str()).help(match kind {
            TransportKind::S5b => "SOCKS5 bytestreams (XEP-0065)",
            TransportKind::Ibb => "In-band bytestreams (XEP-0047)",
            TransportKind::Ice => "A TCP connection found by ICE (XEP-0371), without a broker",
        })
    });
    PossibleValuesParser::new(names).try_map(|name| name.parse())
}

#[derive(Args, Debug)]
pub(super) struct Common {
    /// The account to use, if there are several
    #[arg(long, global = true, value_name = "JID")]
    pub(super) account: Option<BareJid>,
    /// The component to use as broker (default: the account's)
    #[arg(long, global = true, value_name = "COMPONENT")]
    pub(super) via: Option<BareJid>,
    /// Use no broker, even if the account has one; the JID must be full, except with send --wait
    #[arg(long, global = true, conflicts_with = "via")]
    pub(super) direct: bool,
    /// The TLS method
    #[arg(long, global = true, default_value = "x509")]
    pub(super) method: Method,
    /// The only transport to accept on this side; if it is not available, the session fails
    #[arg(long, global = true, value_parser = transports(TransportKind::OF_PROGRAMS))]
    pub(super) transport: Option<TransportKind>,
    /// The transport to offer first; the other one is used if it is not available
    #[arg(long, global = true, conflicts_with = "transport", value_parser = transports(TransportKind::ALL))]
    pub(super) prefer: Option<TransportKind>,
    /// Write one JSON object per line to standard output
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Show errors only
    #[arg(short, long, global = true)]
    pub(super) quiet: bool,
    /// Log more (to standard error)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(super) verbose: u8,
    /// Authorities to trust for the XMPP server, PEM
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) ca_file: Option<PathBuf>,
    /// Do not check the XMPP server's certificate
    #[arg(long, global = true)]
    pub(super) insecure_tls: bool,
    /// Ask the user to compare the short authentication string before anything is sent or received
    #[arg(long, global = true)]
    pub(super) confirm_sas: bool,
    /// Decide on a further key of a known peer, if the component's registry calls it proven
    #[arg(long, global = true, value_name = "HOW", default_value = "ask")]
    pub(super) accept_new_device: AcceptNewDevice,
    /// Connect to the peer directly where the network allows it; both programs then learn the other's IP address
    /// (default: the account's, or auto)
    #[arg(long, global = true, value_name = "WHEN")]
    pub(super) direct_path: Option<DirectPathChoice>,
    /// A STUN server to ask, over TCP, at which address it sees this machine, instead of those that your XMPP server names;
    /// up to two, or none. Asked only once you and the peer have agreed to connect directly (default: the account's)
    #[arg(long, global = true, value_name = "HOST:PORT", value_parser = stun_server)]
    pub(super) stun: Vec<String>,
    /// For --method srp: read the shared password from the first line of this file
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) srp_password_file: Option<PathBuf>,
    /// For tests: ask the XMPP server for a sign of life after this many seconds of silence
    #[arg(long, global = true, hide = true, value_name = "SECONDS")]
    pub(super) keepalive: Option<u64>,
    /// For tests: offer this fingerprint instead of the key's own
    #[arg(long, global = true, hide = true, value_name = "HEX")]
    pub(super) offer_print: Option<String>,
}

/// The longest period of `--wait`: a year, in seconds.
const LONGEST_WAIT: u64 = 366 * 86_400;

/// The value of `--stun` with which no server is asked.
pub(super) const NO_STUN: &str = "none";

/// The decision on a further key of a known peer. Only a key that the registry calls proven is ever accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum AcceptNewDevice {
    /// Show it and ask once; without a terminal, refuse it
    #[default]
    Ask,
    /// Accept it without a question
    Registry,
    /// Refuse it
    Never,
}

/// When sessions may leave the relay for a direct connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum DirectPathChoice {
    /// With peers that you trust: you have vouched for their keys. With others if you say so when asked at a terminal
    #[default]
    Auto,
    /// Never; your address is told to nobody
    Never,
    /// With every peer
    Always,
}

impl From<DirectPathChoice> for DirectPath {
    fn from(choice: DirectPathChoice) -> Self {
        match choice {
            DirectPathChoice::Auto => Self::Auto,
            DirectPathChoice::Never => Self::Never,
            DirectPathChoice::Always => Self::Always,
        }
    }
}

/// Options of the commands that also work on a local network.
#[derive(Args, Clone, Debug)]
pub(super) struct LanArgs {
    /// Work on the local network, without a server (XEP-0174)
    #[arg(long)]
    pub(super) lan: bool,
    /// Use only this network interface
    #[arg(long, value_name = "NAME", requires = "lan")]
    pub(super) interface: Vec<String>,
    /// The name to use there, instead of the names of the system's user and of the machine
    #[arg(long, value_name = "USER@MACHINE", requires = "lan")]
    pub(super) name: Option<BareJid>,
}

/// The account to log in with.
#[derive(Args, Clone, Debug)]
pub(super) struct LoginArgs {
    /// The account's address, user@domain; or only a domain whose server takes users without accounts, for
    /// `xtls send --code` and `xtls receive`
    pub(super) jid: BareJid,
    /// The XMPP server, instead of the one in the DNS records of the JID's domain
    #[arg(long, value_name = "HOST:PORT", value_parser = server)]
    pub(super) server: Option<String>,
    /// Read the password from the first line of this file
    #[arg(long, value_name = "FILE")]
    pub(super) password_file: Option<PathBuf>,
    /// The SHA-256 fingerprint of the XMPP server's certificate: only this certificate is then accepted, at each later
    /// login too. For a server whose certificate no authority has signed
    #[arg(long, value_name = "SHA256", value_parser = certificate)]
    pub(super) trust_certificate: Option<Print>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Log in, make a key, register and prove it: all that is needed to send and receive files
    ///
    /// A second run keeps what is there and does what is missing.
    Setup {
        #[command(flatten)]
        login: LoginArgs,
        /// A name for the key
        #[arg(long, default_value = "xtls", value_parser = carried)]
        label: String,
    },
    /// Check the account, the server, its certificate, the component, your key, the proxy and the speed
    ///
    /// Each fault is shown with its cure. Exit status 1 if a check has failed.
    Doctor,
    /// Log in and store the account
    Login(LoginArgs),
    /// List registered keys: your own, or another user's
    Keys {
        /// The other user
        jid: Option<BareJid>,
    },
    /// Make a key and its certificate
    Keygen {
        /// The kind of an X.509 key: p256, which every TLS library accepts; ed25519; or ml-dsa-65, which no known
        /// quantum attack can forge, but OpenSSL before 3.5 and GnuTLS do not accept
        #[arg(long, value_name = "ALGORITHM", default_value_t, conflicts_with = "openpgp")]
        algorithm: Algorithm,
        /// Make an OpenPGP key, for --method openpgp
        #[arg(long)]
        openpgp: bool,
        /// Import an OpenPGP secret key, such as gpg --export-secret-keys writes
        #[arg(long, value_name = "FILE", requires = "openpgp")]
        import: Option<PathBuf>,
        /// The version of a new OpenPGP key: 4, which all programs support, or 6 (RFC 9580)
        #[arg(long, default_value = "4", value_parser = ["4", "6"])]
        key_version: String,
    },
    /// Register your key for the method at the component
    Register {
        /// A name for the key
        #[arg(long, default_value = "xtls", value_parser = carried)]
        label: String,
    },
    /// Prove to the component's registry that the key is yours
    Prove,
    /// Revoke a key for good
    Revoke {
        /// The key's id, as `xtls keys` lists it
        #[arg(value_parser = carried)]
        id: String,
        /// The reason, for others to see
        #[arg(long, default_value = "", value_parser = carried)]
        reason: String,
    },
    /// Wait for sessions and receive files; with --chat and --pipe, all kinds of sessions
    Listen {
        /// The directory for received files; created if it does not exist
        #[arg(long, default_value = ".", value_name = "DIR")]
        out: PathBuf,
        /// Refuse larger files; for example 500M or 2G [default: as large as the free space]
        #[arg(long, value_name = "SIZE", value_parser = size)]
        max_size: Option<u64>,
        /// End after one session
        #[arg(long)]
        once: bool,
        /// Accept sessions from these users only
        #[arg(long, value_name = "JID", num_args = 1..)]
        accept: Vec<BareJid>,
        /// Also accept sessions that do not come through the component; the registry is asked about the peer's key all
        /// the same
        #[arg(long, conflicts_with = "lan")]
        accept_direct: bool,
        /// Be available to your contacts, with a negative priority, so that sessions that they propose without a broker ring
        /// here
        #[arg(long, conflicts_with = "lan")]
        available: bool,
        /// Also accept chats, one at a time: lines of standard input go to the peer of the current chat
        #[arg(long, conflicts_with = "lan")]
        chat: bool,
        /// Also accept pipes: each session starts this shell command and is connected to its standard input and output;
        /// XTLS_PEER has the peer's address, XTLS_METHOD the method and XTLS_PRINT the fingerprint of the peer's key
        #[arg(long, value_name = "COMMAND", conflicts_with = "lan")]
        pipe: Option<String>,
        #[command(flatten)]
        lan: LanArgs,
    },
    /// Send files
    ///
    /// With --code, neither side needs a key: the program shows a code, waits until somebody types it after `xtls receive`, and
    /// sends the files once.
    #[command(
        override_usage = "xtls send [OPTIONS] <JID> <FILES>...\n       xtls send [OPTIONS] --code <FILE>..."
    )]
    Send {
        /// The receiver
        #[arg(required_unless_present = "code")]
        jid: Option<Jid>,
        /// The files
        #[arg(required_unless_present = "code")]
        files: Vec<PathBuf>,
        /// Show a code, and send these files to the first who types it: `xtls receive CODE`
        #[arg(
            long,
            value_name = "FILE",
            num_args = 1..,
            conflicts_with_all = ["jid", "files", "lan", "method", "srp_password_file", "offer_print"],
        )]
        code: Vec<PathBuf>,
        /// Wait this long for the receiver to appear; for example 30s, 10m or 2h [default with --code: 10m]
        #[arg(long, value_name = "TIME", value_parser = period, conflicts_with = "lan")]
        wait: Option<Duration>,
        #[command(flatten)]
        lan: LanArgs,
    },
    /// Receive the files of `xtls send --code`
    ///
    /// Neither side needs a key: the first who knows the code gets the files. Exit status 3: nobody waits with this code. 4: its words
    /// are not the sender's.
    Receive {
        /// The code that the sender's program shows, such as alice@example.org/7-guitar-window-orbit; without it, xtls asks
        /// for it, or reads the first line of standard input
        #[arg(conflicts_with_all = ["method", "srp_password_file", "offer_print"])]
        code: Vec<String>,
        /// The directory for received files; created if it does not exist
        #[arg(long, default_value = ".", value_name = "DIR")]
        out: PathBuf,
        /// Leave out larger files; for example 500M or 2G
        #[arg(long, value_name = "SIZE", value_parser = size)]
        max_size: Option<u64>,
    },
    /// Connect standard input and output to a peer's
    ///
    /// Each direction ends by itself; the pipe ends with the second. If standard input is a terminal, or is empty, the
    /// end of the peer's output ends the pipe. Exit status 0 means that everything has arrived: each side has read the
    /// other's end. A stream that was cut gives status 1.
    Pipe {
        /// The peer
        #[arg(required_unless_present = "listen")]
        jid: Option<Jid>,
        /// Wait for a peer instead
        #[arg(long, conflicts_with = "jid")]
        listen: bool,
        /// Also accept sessions that do not come through the component; the registry is asked about the peer's key all
        /// the same
        #[arg(long, requires = "listen")]
        accept_direct: bool,
    },
    /// Chat: stanzas from end to end, each acknowledged by the other side
    Chat {
        /// The peer
        #[arg(required_unless_present = "listen")]
        jid: Option<Jid>,
        /// Wait for a peer instead
        #[arg(long, conflicts_with = "jid")]
        listen: bool,
        /// Accept chats from these users only
        #[arg(long, value_name = "JID", num_args = 1.., requires = "listen")]
        accept: Vec<BareJid>,
        /// Also accept sessions that do not come through the component; the registry is asked about the peer's key all
        /// the same
        #[arg(long, requires = "listen", conflicts_with = "lan")]
        accept_direct: bool,
        #[command(flatten)]
        lan: LanArgs,
    },
    /// List and change known peers and their keys
    Trust {
        #[command(subcommand)]
        command: TrustCommand,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum TrustCommand {
    /// List known peers and the keys of their devices
    List,
    /// Trust this key of a peer, beside those that are known (an OpenPGP key with --method openpgp)
    Set {
        /// The peer
        jid: BareJid,
        /// The SHA-256 fingerprint of its certificate or of its public key, or the fingerprint of its OpenPGP key, in any
        /// form that openssl, certtool, keytool, gpg and sq print
        print: String,
        /// What to call the device
        #[arg(long, default_value = "", hide_default_value = true)]
        label: String,
    },
    /// Forget a peer, or one of its keys; the next key of an unknown peer is trusted on first use
    Forget {
        /// The peer
        jid: BareJid,
        /// Only the key with this fingerprint
        print: Option<String>,
    },
}

/// Returns the address of a server, if it is `HOST:PORT`.
fn server(value: &str) -> Result<String, &'static str> {
    let parts = value.rsplit_once(':').filter(|(host, port)| {
        let is_ipv6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_host = match is_ipv6 {
            Some(host) => host.parse::<std::net::Ipv6Addr>().is_ok(),
            None => !host.is_empty() && !host.contains([':', '/', '[', ']', ' ']),
        };
        is_host
            && port.bytes().all(|byte| byte.is_ascii_digit())
            && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    parts
        .map(|_| value.to_owned())
        .ok_or("expected HOST:PORT, such as example.org:5222 or [::1]:5222")
}

/// Reads the SHA-256 fingerprint of a certificate.
pub(super) fn certificate(value: &str) -> Result<Print, String> {
    let print = Print::pin(value, Method::X509).map_err(|error| error.to_string())?;
    if print.hash() != HashKind::Sha256 {
        return Err("expected the SHA-256 fingerprint of a whole certificate".to_owned());
    }
    Ok(print)
}

/// Returns the address of a STUN server, or `none`.
fn stun_server(value: &str) -> Result<String, &'static str> {
    if value == NO_STUN {
        return Ok(value.to_owned());
    }
    server(value).map_err(|_| "expected HOST:PORT, such as stun.example.org:3478, or none")
}

/// Reads the text, if XML can carry it.
fn carried(value: &str) -> Result<String, String> {
    match text::first_not_carried(value) {
        None => Ok(value.to_owned()),
        Some(c) => Err(format!(
            "expected text that XML can carry, found the control character U+{:04X}",
            u32::from(c)
        )),
    }
}

/// Returns a period, read from numbers with the units s, m, h and d, or one of seconds.
fn period(value: &str) -> Result<Duration, String> {
    let expected = || "expected a time, such as 30s, 10m or 1h30m".to_owned();
    let mut seconds: u64 = 0;
    let mut rest = value;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, unit) = rest.split_at(digits);
        let unit = unit.chars().next().unwrap_or('s');
        let factor = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return Err(expected()),
        };
        let number: u64 = number.parse().map_err(|_| expected())?;
        let more = number.checked_mul(factor).and_then(|more| seconds.checked_add(more));
        seconds = more.ok_or_else(expected)?;
        rest = rest.get(digits + 1..).unwrap_or_default();
    }
    // The clock of the system cannot count further than a few hundred years.
    let is_sane = (1..=LONGEST_WAIT).contains(&seconds);
    is_sane.then(|| Duration::from_secs(seconds)).ok_or_else(expected)
}

/// Returns a number of bytes, read from a number that may end with K, M, G or T (powers of 1024).
fn size(value: &str) -> Result<u64, String> {
    let expected = || "expected a number of bytes, such as 1048576, 500M or 2G".to_owned();
    let digits = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    let (number, unit) = value.split_at(digits);
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return Err(expected()),
    };
    let number: u64 = number.parse().map_err(|_| expected())?;
    number.checked_mul(1 << shift).ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_server_is_a_host_and_a_port() {
        for good in ["example.org:5222", "127.0.0.1:1", "[::1]:5222", "bücher.test:65535"] {
            assert_eq!(server(good), Ok(good.to_owned()));
        }
        for bad in
            ["", "127.0.0.1", "127.0.0.1:99999", ":5222", "a:0", "a:", "a:+1", "::1:5222", "[a]:1"]
        {
            assert!(server(bad).is_err(), "{bad}");
            let args = ["xtls", "login", "alice@example.test", "--server", bad];
            assert_eq!(Cli::try_parse_from(args).unwrap_err().exit_code(), 2, "{bad}");
        }
    }

    #[test]
    fn stun_servers_are_hosts_and_ports_or_none() {
        let stun = |args: &[&str]| {
            let args = [&["xtls"], args, &["listen"]].concat();
            Cli::try_parse_from(args).map(|cli| cli.common.stun)
        };
        assert_eq!(stun(&[]).unwrap(), [""; 0]);
        let two = ["--stun", "stun.example.org:3478", "--stun", "[::1]:3478"];
        assert_eq!(stun(&two).unwrap(), ["stun.example.org:3478", "[::1]:3478"]);
        assert_eq!(stun(&["--stun", NO_STUN]).unwrap(), [NO_STUN]);
        assert_eq!(stun(&["--stun", "stun.example.org"]).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn a_servers_certificate_is_named_by_its_sha_256() {
        let digits = "a1".repeat(32);
        let print = Print::new(HashKind::Sha256, &[0xa1; 32]).unwrap();
        for text in [digits.clone(), print.to_string(), format!("sha256 Fingerprint={print}")] {
            assert_eq!(certificate(&text), Ok(print.clone()), "{text}");
        }
        for text in ["", "a1:a1", &"a1".repeat(20), &format!("pin-sha256:{}", "A".repeat(43))] {
            assert!(certificate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn periods_are_read_with_their_units() {
        for (text, seconds) in
            [("30s", 30), ("10m", 600), ("2h", 7200), ("1h30m", 5400), ("90", 90)]
        {
            assert_eq!(period(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "0", "m", "-1s", "1.5h", "10 m", "10x", "99999d", "99999999999999999999s"]
        {
            assert!(period(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_in_binary_units() {
        for (text, bytes) in [("0", 0), ("1048576", 1 << 20), ("500M", 500 << 20), ("2g", 2 << 30)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "-1", "1.5G", "1 G", "99999999T", "9x"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_xml_cannot_carry_is_refused_before_anything_is_sent() {
        for args in [
            &["xtls", "register", "--label", "a\u{1}"][..],
            &["xtls", "revoke", "id", "--reason", "a\u{FFFE}"],
            &["xtls", "revoke", "i\u{8}d"],
        ] {
            let error = Cli::try_parse_from(args).unwrap_err();
            assert!(error.to_string().contains("that XML can carry, found"), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
    }
}
