//! Sessions without a server, between users of one local network (XEP-0174). Keys are checked as everywhere.
//!
//! `listen` and `chat --listen` announce the user by multicast DNS and take connections; `send` and `chat` look for a
//! name. STARTTLS secures the stream before a stanza is sent. Messages of a chat go over it as they are. A file is a
//! Jingle session on it, as through a server: with TLS of its own, over an in-band bytestream.

mod claim;
mod discovery;
mod link;
mod multicast;
mod presence;
mod starttls;

use std::{
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use fingerpost_endpoint::{
    DirectPath, Endpoint, Error, Incoming, Known, Login, Policy, Shown, TransportKind,
    dial_addresses,
};
use fingerpost_secure::{identity::Identity, sas, stream::Secured};
use fingerpost_wire::{
    ns,
    print::{Method, Print},
};
use jid::{BareJid, Jid};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Mutex,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsStream;

pub use self::discovery::SERVICE;
pub(super) use self::{claim::name_after, discovery::instance};
use self::{
    discovery::Search,
    link::{LanLink, full},
    presence::Presence,
};
use super::{
    account::{self, Account},
    args::{AcceptNewDevice, Common, LanArgs},
    chat::Chat,
    client::{Client, Takes},
    credential::identity_in,
    interrupt::interrupted,
    listen::{FileInbox, Kinds, Listen},
    output::{Output, XtlsError},
    secured::{comparison, confirm},
    send,
    stream::{Names, Role},
    trust::{Device, Trust, Verified},
};

/// The time from a connection to the secured stream.
const SECURE: Duration = Duration::from_secs(30);
/// How long connecting to some addresses may take; they are tried side by side.
const CONNECT: Duration = Duration::from_secs(10);
/// How long the last words to a peer that is refused may take.
const REFUSE: Duration = Duration::from_secs(5);
/// How many connections are served at once; others wait.
const CONNECTIONS: usize = 16;

/// A user of the local network.
#[derive(Debug)]
pub(super) struct Lan {
    identity: Arc<Identity>,
    dir: PathBuf,
    user: String,
    machine: String,
    interfaces: Vec<String>,
    confirm_sas: bool,
    output: Output,
    /// Held while the user is told of a peer.
    telling: Mutex<()>,
}

/// A secured connection with a peer whose key is known or was stored.
struct Secure {
    tls: TlsStream<TcpStream>,
    peer: BareJid,
    print: Print,
}

/// A policy for sessions inside the link: their key must be the one that was checked at its beginning.
#[derive(Debug)]
struct SamePeer(Print);

impl Policy for SamePeer {
    fn shown(&self, shown: &Shown<'_>) -> Result<Known, Error> {
        if *shown.print == self.0 {
            return Ok(Known::Same);
        }
        let text = format!(
            "{} has another key in the session than on the link: nothing was sent",
            shown.peer
        );
        Err(Error::Unverified(text.into()))
    }

    fn remembers(&self, _peer: &BareJid) -> bool {
        true
    }
}

impl Lan {
    /// Loads the account's key and known peers; without any account, those of a directory for the local network alone.
    pub(super) fn load(common: &Common, args: LanArgs, output: Output) -> Result<Self, XtlsError> {
        if common.method != Method::X509 {
            return Err(XtlsError::usage("--lan works with the method x509 only"));
        }
        let of_servers = [
            ("--via", common.via.is_some()),
            ("--direct", common.direct),
            ("--transport", common.transport.is_some()),
            ("--prefer", common.prefer.is_some()),
        ];
        if let Some((option, _)) = of_servers.iter().find(|(_, given)| *given) {
            return Err(XtlsError::usage(format!(
                "{option} is for sessions over a server and cannot be used with --lan"
            )));
        }
        let dir = directory(common)?;
        let machine = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let machine = machine.split('.').next().unwrap_or_default().to_lowercase();
        let user = ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
        let (user, machine) = match &args.name {
            Some(name) => {
                let user = name.node().ok_or_else(|| {
                    XtlsError::usage("the name must be USER@MACHINE, such as juliet@pronto")
                })?;
                (user.to_string(), name.domain().to_string())
            }
            None => (user.unwrap_or_else(|| "user".to_owned()), machine),
        };
        let owner = BareJid::new(&format!("{user}@{machine}"))
            .map_err(|error| XtlsError::usage(format!("{user}@{machine}: {error}; see --name")))?;
        let lock = account::lock(&dir)?;
        let identity = match identity_in(&dir)? {
            Some(identity) => identity,
            None => {
                let identity = Identity::generate(&owner)?;
                identity.store(&dir)?;
                identity
            }
        };
        drop(lock);
        Ok(Self {
            identity: Arc::new(identity),
            dir,
            user,
            machine,
            interfaces: args.interface,
            confirm_sas: common.confirm_sas,
            output,
            telling: Mutex::default(),
        })
    }

    /// Sends files to a peer.
    pub(super) async fn send(self, name: &Jid, files: Vec<PathBuf>) -> Result<(), XtlsError> {
        let own = self.own()?;
        let client = self.client(&own);
        let files = send::check_all(&client, &files)?;
        let secure = self.call(&own, name).await?;
        let peer = secure.peer.clone();
        let (endpoint, _incoming, link) = self.endpoint(secure, Role::Initiator, &own)?;
        let to = full(&peer).map(Jid::from).ok_or_else(|| XtlsError::failed("no address"))?;
        let sent = send::send_all(&client, &endpoint, &to, files, None).await;
        link.close().await;
        sent
    }

    /// Waits for peers and receives their files.
    pub(super) async fn listen(
        self,
        inbox: FileInbox,
        once: bool,
        accept: Vec<BareJid>,
    ) -> Result<(), XtlsError> {
        let (listener, mut presence) = self.announce().await?;
        let lan = Arc::new(self);
        let name = presence.name();
        let client = lan.client(&name.now()?);
        let listen = Arc::new(Listen::new(client, Kinds::files(inbox), once, Vec::new()));
        let mut stop = Box::pin(interrupted());
        let mut links = JoinSet::new();
        let done = loop {
            tokio::select! {
                biased;
                () = &mut stop => {
                    let idle = links.is_empty();
                    links.shutdown().await;
                    break if idle { Ok(()) } else { Err(XtlsError::failed("interrupted")) };
                }
                error = presence.lost() => break Err(error),
                Some(done) = links.join_next() => {
                    // The end of a link: whether it carried a session, and how that ended.
                    let done: Option<Result<(), XtlsError>> = done.unwrap_or_default();
                    match done {
                        Some(done) if once => break done,
                        Some(Err(error)) => lan.output.error(&error),
                        _ => {}
                    }
                }
                tcp = listener.accept(), if links.len() < CONNECTIONS => {
                    let Ok((tcp, _)) = tcp else { continue };
                    let own = name.now()?;
                    let (lan, listen, accept) =
                        (Arc::clone(&lan), Arc::clone(&listen), accept.clone());
                    links.spawn(async move { lan.serve(tcp, &listen, &own, &accept).await });
                }
            }
        };
        presence.end().await;
        done
    }

    /// Serves one connection of a peer that sends files; `None` if there was no session.
    async fn serve(
        &self,
        tcp: TcpStream,
        listen: &Listen,
        own: &BareJid,
        accept: &[BareJid],
    ) -> Option<Result<(), XtlsError>> {
        let instead = format!("xtls send --lan {own} FILE");
        let secure = match self.answer(tcp, own, accept, &instead).await {
            Ok(secure) => secure,
            Err(error) => {
                self.output.error(&error);
                return None;
            }
        };
        let (_endpoint, mut incoming, mut link) =
            self.endpoint(secure, Role::Responder, own).ok()?;
        let mut last = None;
        loop {
            let request = tokio::select! {
                request = incoming.next() => request,
                () = link.ended() => None,
            };
            let Some(request) = request else { return last };
            let done = listen.serve(request).await;
            if listen.once {
                link.close().await;
                return Some(done);
            }
            if let Err(error) = &done {
                self.output.error(error);
            }
            last = Some(Ok(()));
        }
    }

    /// Chats with a peer.
    pub(super) async fn chat(self, name: &Jid) -> Result<(), XtlsError> {
        let own = self.own()?;
        let secure = tokio::select! {
            secure = self.call(&own, name) => secure?,
            () = interrupted() => return Err(XtlsError::failed("interrupted")),
        };
        self.talk(secure, Role::Initiator, own).await
    }

    /// Waits for one chat.
    pub(super) async fn wait_for_chat(self, accept: &[BareJid]) -> Result<(), XtlsError> {
        let (listener, mut presence) = self.announce().await?;
        let name = presence.name();
        let mut stop = Box::pin(interrupted());
        let done = loop {
            let accepted = async {
                let (tcp, _) = listener.accept().await?;
                let own = name.now()?;
                let instead = format!("xtls chat --lan {own}");
                self.answer(tcp, &own, accept, &instead).await.map(|secure| (secure, own))
            };
            tokio::select! {
                secure = accepted => match secure {
                    Ok((secure, own)) => break self.talk(secure, Role::Responder, own).await,
                    Err(error) => self.output.error(&error),
                },
                error = presence.lost() => break Err(error),
                () = &mut stop => break Ok(()),
            }
        };
        presence.end().await;
        done
    }

    async fn talk(&self, secure: Secure, role: Role, own: BareJid) -> Result<(), XtlsError> {
        let names = Names { own: vec![own], peer: vec![secure.peer.clone()] };
        Chat { role, names, peer: secure.peer.as_str(), output: self.output, seat: None }
            .run(secure.tls)
            .await
    }

    /// What we are called, unless somebody else is.
    fn own(&self) -> Result<BareJid, XtlsError> {
        let name = format!("{}@{}", self.user, self.machine);
        BareJid::new(&name).map_err(|error| XtlsError::usage(format!("{name}: {error}")))
    }

    async fn announce(&self) -> Result<(TcpListener, Presence), XtlsError> {
        let listener = match TcpListener::bind("[::]:0").await {
            Ok(listener) => listener,
            Err(_) => TcpListener::bind("0.0.0.0:0").await?,
        };
        let port = listener.local_addr()?.port();
        let presence =
            Presence::start(self.own()?, port, self.interfaces.clone(), self.output).await?;
        let name = presence.name().now()?;
        let name = name.as_str();
        self.output.event(
            &json!({"event": "listening", "jid": name, "port": port}),
            &format!("listening on the local network as {name} (Ctrl-C ends)"),
        );
        Ok((listener, presence))
    }

    /// Finds a peer, connects and secures the stream.
    async fn call(&self, own: &BareJid, name: &Jid) -> Result<Secure, XtlsError> {
        let peer = name.to_bare();
        let tcp = self.connect(&peer).await?;
        let names = Names { own: vec![own.clone()], peer: vec![peer.clone()] };
        let (tls, secured) = timeout(SECURE, starttls::connect(tcp, names, &self.identity))
            .await
            .map_err(|_| XtlsError::failed(format!("{peer} did not answer")))??;
        self.vouch(&tls, &secured, &peer, own, &peer).await?;
        Ok(Secure { tls, peer, print: secured.peer })
    }

    /// Finds a peer and connects to whichever of its addresses answers first, while more are still being found.
    async fn connect(&self, peer: &BareJid) -> Result<TcpStream, XtlsError> {
        let mut search = Search::start(peer, &self.interfaces)?;
        let (mut searching, mut dials, mut failed) = (true, JoinSet::new(), Vec::new());
        loop {
            tokio::select! {
                more = search.next(), if searching => match more {
                    Some(addresses) => {
                        dials.spawn(timeout(CONNECT, dial_addresses(addresses)));
                    }
                    None => searching = false,
                },
                Some(dialled) = dials.join_next() => match dialled {
                    Ok(Ok(Ok(tcp))) => return Ok(tcp),
                    Ok(Ok(Err(error))) => failed.push(error.to_string()),
                    _ => failed.push("it does not answer".to_owned()),
                },
                else => break,
            }
        }
        if failed.is_empty() {
            return Err(search.not_found());
        }
        let why = failed.join("; ");
        Err(XtlsError::unreachable(format!("{peer} cannot be connected to: {why}")))
    }

    /// Takes a connection and secures the stream. `instead` is the command that reaches us.
    async fn answer(
        &self,
        tcp: TcpStream,
        own: &BareJid,
        accept: &[BareJid],
        instead: &str,
    ) -> Result<Secure, XtlsError> {
        let accepted = starttls::accept(tcp, own, &self.identity, instead);
        let (tls, secured, peer) = timeout(SECURE, accepted)
            .await
            .map_err(|_| XtlsError::failed("a peer connected and sent nothing"))??;
        let admitted = if accept.is_empty() || accept.contains(&peer) {
            self.vouch(&tls, &secured, &peer, &peer, own).await
        } else {
            Err(XtlsError::refused(format!("{peer} is not among those to accept")))
        };
        match admitted {
            Ok(()) => Ok(Secure { tls, peer, print: secured.peer }),
            Err(error) => {
                let _ = timeout(REFUSE, starttls::refuse(tls, own)).await;
                Err(error)
            }
        }
    }

    /// Checks the key that was shown against the trust store. Anyone can take a name on a network, so a peer is known
    /// by its name there and never by an address of a server: `juliet@pronto.local`.
    async fn vouch(
        &self,
        stream: &TlsStream<TcpStream>,
        secured: &Secured,
        peer: &BareJid,
        initiator: &BareJid,
        responder: &BareJid,
    ) -> Result<(), XtlsError> {
        let _turn = self.telling.lock().await;
        let name = known_as(peer)?;
        let mut trust = Trust::load(&self.dir)?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let certificate = certificate.map(AsRef::as_ref).unwrap_or_default();
        let forms = Print::forms(Method::X509, &secured.peer, certificate);
        let first = match trust.check_forms(&name, Method::X509, &secured.peer, &forms) {
            Known::Same => false,
            Known::First => true,
            // Nobody here vouches for another key.
            _ => return Err(trust.refusal(&name, Method::X509, &secured.peer, "")),
        };
        let print = secured.peer.to_string();
        let digits = if first || self.confirm_sas {
            let digits = sas::of(stream, initiator, responder).await;
            Some(digits.map_err(|error| XtlsError::failed(error.to_string()))?)
        } else {
            None
        };
        let also = trust.devices().find(|(jid, key)| **jid != name && key.print == secured.peer);
        let also = also.map(|(jid, _)| jid.to_string());
        let mut text = format!(
            "secured with {peer} on the local network: {} {}\n  key {print}",
            secured.version, secured.key_exchange
        );
        if let Some(also) = &also {
            text += &format!("\n  the key is that of {also}");
        }
        if first {
            text += " (first use: trusted from now on)";
        }
        if let Some(digits) = &digits {
            text += &comparison(digits, initiator);
        }
        self.output.event(
            &json!({
                "event": "secured", "peer": peer.as_str(), "method": "x509", "transport": "lan",
                "tls_version": secured.version, "key_exchange": secured.key_exchange,
                "peer_print": print, "first_use": first, "also_known_as": also, "sas": digits,
                "initiator": initiator.as_str(),
            }),
            &text,
        );
        if let (true, Some(digits)) = (self.confirm_sas, digits) {
            confirm(peer, &digits).await?;
        }
        if first {
            let verified = if self.confirm_sas { Verified::Compared } else { Verified::FirstUse };
            let device = Device::seen_now(Method::X509, secured.peer.clone(), "", verified);
            trust.keep(&name, device, &forms)?;
        }
        Ok(())
    }

    fn endpoint(
        &self,
        secure: Secure,
        role: Role,
        own: &BareJid,
    ) -> Result<(Endpoint, Incoming, LanLink), XtlsError> {
        let (Some(own), Some(peer)) = (full(own), full(&secure.peer)) else {
            return Err(XtlsError::failed("a name is too long"));
        };
        let socket = secure.tls.get_ref().0;
        let addresses = socket.local_addr().and_then(|own| Ok((own, socket.peer_addr()?)));
        let (connection, link) = link::start(secure.tls, role, own, peer);
        let builder = Endpoint::builder(Arc::clone(&self.identity))
            .policy(SamePeer(secure.print))
            .transport(TransportKind::Ibb)
            .feature(ns::FILE_TRANSFER)
            .feature(ns::HASHES);
        // In-band, each byte would go through two layers of TLS, and through base64.
        let builder = match addresses {
            Ok((own, peer)) => builder.on_link(own, peer),
            Err(_) => builder.direct_path(DirectPath::Never),
        };
        let (endpoint, incoming) = builder.over(connection);
        Ok((endpoint, incoming, link))
    }

    /// Returns the client for the file commands; it does not log in anywhere.
    fn client(&self, own: &BareJid) -> Client {
        Client {
            login: Login::new(own.clone(), ""),
            dir: self.dir.clone(),
            credential: Arc::clone(&self.identity).into(),
            offered: None,
            via: None,
            component: None,
            prefer: None,
            takes: Takes::FILES,
            transport: Some(TransportKind::Ibb),
            guesses: None,
            accept_direct: false,
            available: false,
            // Both have compared the link's string.
            confirm_sas: false,
            accept_new_device: AcceptNewDevice::Never,
            declined: std::sync::Mutex::default(),
            direct_path: DirectPath::Never,
            stun: Vec::new(),
            output: self.output,
        }
    }
}

/// Returns the name of a local network's peer in the trust store.
fn known_as(peer: &BareJid) -> Result<BareJid, XtlsError> {
    if peer.domain().as_str().ends_with(".local") {
        return Ok(peer.clone());
    }
    let name = format!("{peer}.local");
    BareJid::new(&name).map_err(|error| XtlsError::failed(format!("{name}: {error}")))
}

/// Returns whether an account is set up or named.
fn has_account(common: &Common, home: &Path) -> bool {
    let any = || std::fs::read_dir(home).into_iter().flatten().flatten();
    common.account.is_some() || any().any(|entry| entry.path().join(account::FILE).exists())
}

/// Checks that the trust store in use is the one for this peer.
///
/// # Errors
/// Exit status 2 without an account, unless the peer is on the local network: sessions of an account made later would
/// not see the key.
pub(super) fn check_account(common: &Common, peer: &BareJid) -> Result<(), XtlsError> {
    if peer.domain().as_str().ends_with(".local") || has_account(common, &account::home()?) {
        return Ok(());
    }
    Err(XtlsError::usage(format!("there is no account to keep the key of {peer} for"))
        .hint("run xtls login JID first; the names of the local network end in .local"))
}

/// Returns the directory of the account, or, without one, that of the local network.
pub(super) fn directory(common: &Common) -> Result<PathBuf, XtlsError> {
    let home = account::home()?;
    if has_account(common, &home) {
        return account::directory(&Account::load(common.account.as_ref())?.jid);
    }
    let dir = home.join("lan");
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .map_err(|error| XtlsError::failed(format!("{}: {error}", dir.display())))?;
    Ok(dir)
}
