//! The settings of an endpoint, as other languages give them.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use fingerpost_endpoint::{Builder, Endpoint, FirstUse, Login, Registered, TransportKind};
use fingerpost_secure::identity::Identity;
use fingerpost_wire::print::{HashKind, Print};
use jid::BareJid;

use crate::fault::Fault;

/// Which keys of peers are accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// Those that the component's registry vouches for.
    #[default]
    Registered,
    /// A peer's first one, and from then on no other, for as long as the program runs.
    FirstUse,
}

impl FromStr for Trust {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        match text {
            "registered" => Ok(Self::Registered),
            "first-use" => Ok(Self::FirstUse),
            _ => Err(Fault::argument(format!(
                "trust: expected registered or first-use, found {text:?}"
            ))),
        }
    }
}

/// The settings of one user's endpoint.
#[derive(Clone, Default)]
pub struct Settings {
    /// The user's bare JID.
    pub jid: String,
    /// The user's password at the XMPP server.
    pub password: String,
    /// The component that brokers the sessions.
    pub component: String,
    /// `host:port` of the XMPP server, instead of the DNS records of the JID's domain.
    pub server: Option<String>,
    /// The authorities to trust for the server's certificate, PEM, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The directory of the user's key, which is made if it does not exist. Without it the key lives as long as the endpoint.
    pub identity: Option<PathBuf>,
    /// Which keys of peers are accepted.
    pub trust: Trust,
    /// Keys of peers that are known already: a JID and a fingerprint. They need [`Trust::FirstUse`].
    pub known: Vec<(String, String)>,
    /// The only transport, `s5b` or `ibb`; by default either.
    pub transport: Option<String>,
    /// Whether the endpoint reconnects when the connection to the XMPP server is lost.
    pub reconnect: bool,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("jid", &self.jid)
            .field("component", &self.component)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// Returns the login and the endpoint's builder, and the certificate to register.
    pub(crate) fn prepare(self) -> Result<(Login, Builder, BareJid, Vec<u8>), Fault> {
        let jid = address("jid", &self.jid)?;
        let component = address("component", &self.component)?;
        let mut login = Login::new(jid, self.password);
        login.server = self.server;
        login.trust.ca_file = self.ca_file;
        let identity = match &self.identity {
            Some(directory) => identity(directory, &login.jid)?,
            None => Identity::generate(&login.jid)
                .map_err(|error| Fault::argument(format!("identity: {error}")))?,
        };
        let certificate = identity.certificate.to_vec();
        let mut builder = Endpoint::builder(identity).via(component.clone());
        builder = match (self.trust, self.known.as_slice()) {
            (Trust::Registered, []) => builder.policy(Registered),
            (Trust::Registered, _) => {
                return Err(Fault::argument("known: expected none without trust first-use"));
            }
            (Trust::FirstUse, known) => {
                let mut policy = FirstUse::default();
                for (peer, print) in known {
                    let print = Print::parse(print, Some(HashKind::Sha256))
                        .map_err(|error| Fault::argument(format!("known: {peer}: {error}")))?;
                    policy = policy.with(address("known", peer)?, print);
                }
                builder.policy(policy)
            }
        };
        if let Some(transport) = &self.transport {
            let Ok(kind @ (TransportKind::S5b | TransportKind::Ibb)) = transport.parse() else {
                return Err(Fault::argument(format!(
                    "transport: expected s5b or ibb, found {transport:?}"
                )));
            };
            builder = builder.transport(kind);
        }
        if self.reconnect {
            builder = builder.reconnect(|_| {});
        }
        Ok((login, builder, component, certificate))
    }
}

fn address(what: &str, text: &str) -> Result<BareJid, Fault> {
    text.parse().map_err(|error| {
        Fault::argument(format!(
            "{what}: expected a JID such as alice@example.org, found {text:?}: {error}"
        ))
    })
}

/// Loads the identity in a directory, or makes one there.
fn identity(directory: &Path, jid: &BareJid) -> Result<Identity, Fault> {
    let failed = |error: String| Fault::argument(format!("identity: {error}"));
    if let Some(found) = Identity::load(directory).map_err(|error| failed(error.to_string()))? {
        return Ok(found);
    }
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(failed(format!("{}: {error}", directory.display())));
        }
        _ => {}
    }
    let made = Identity::generate(jid).map_err(|error| failed(error.to_string()))?;
    made.store(directory).map_err(|error| failed(error.to_string()))?;
    Ok(made)
}
