//! The program `xtls`: the user's commands around [`fingerpost_endpoint`].

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests may panic"))]

pub mod account;
mod args;
mod chat;
mod chunks;
mod credential;
mod display;
mod fast;
mod files;
#[doc(hidden)]
pub mod fuzzing;
mod lan;
mod listen;
mod login;
pub mod output;
mod pace;
mod parts;
mod peers;
mod pipe;
mod registry;
mod rights;
mod secured;
mod send;
mod stream;
pub mod trust;
mod watch;

use std::{collections::BTreeSet, path::PathBuf, sync::Mutex, time::Duration};

use fingerpost_endpoint::{
    Application, Builder, Contact, Credential, Endpoint, Incoming, Login, RequestKind,
    TransportKind, loses_large_packets,
};
use fingerpost_wire::{ns, print::Print, xml};
use jid::{BareJid, Jid};
use minidom::Element;
use serde_json::json;

pub use self::args::Cli;
use self::{
    account::Account,
    args::{AcceptNewDevice, Command, Common},
    chat::Desk,
    lan::Lan,
    listen::{Inbox, Kinds, Listen},
    output::{Output, XtlsError},
    peers::Peers,
    pipe::{Ends, Side},
};

/// How long a stream may be silent until its end sends a sign of life: the component ends streams on which nothing
/// moves.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// How long queued stanzas may take to go out before the program ends.
const FLUSH: Duration = Duration::from_millis(150);

/// The kinds of peers' sessions that a command accepts and announces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Takes {
    files: bool,
    /// Raw TLS streams.
    pipes: bool,
    /// XML streams.
    chats: bool,
}

impl Takes {
    const FILES: Self = Self { files: true, pipes: false, chats: false };
    const PIPES: Self = Self { files: false, pipes: true, chats: false };
    const CHATS: Self = Self { files: false, pipes: false, chats: true };
}

/// A user's settings for sessions.
#[derive(Debug)]
struct Client {
    login: Login,
    dir: PathBuf,
    credential: Credential,
    offered: Option<Print>,
    /// The broker, if sessions go through it.
    via: Option<BareJid>,
    /// The component, even if it does not broker.
    component: Option<BareJid>,
    transport: Option<TransportKind>,
    prefer: Option<TransportKind>,
    /// The announced kind of sessions: a session goes to the program that announces it.
    takes: Takes,
    /// Whether peers' sessions may come past the broker.
    accept_direct: bool,
    /// Asks the user to compare the short authentication string before each session.
    confirm_sas: bool,
    /// The decision on further keys of known peers.
    accept_new_device: AcceptNewDevice,
    /// Peers with a further key that the user did not accept: there is no second question about them.
    declined: Mutex<BTreeSet<BareJid>>,
    output: Output,
}

impl Client {
    fn load(common: &Common, output: Output) -> Result<Self, XtlsError> {
        let account = Account::load(common.account.as_ref())?;
        let offered = common
            .offer_print
            .as_deref()
            .map(|text| Print::parse(text, None))
            .transpose()
            .map_err(|error| XtlsError::usage(error.to_string()))?;
        let component = common.via.clone().or_else(|| account.via.clone());
        Ok(Self {
            dir: account::directory(&account.jid)?,
            credential: credential::load(common, &account)?,
            accept_direct: false,
            confirm_sas: common.confirm_sas,
            accept_new_device: common.accept_new_device,
            declined: Mutex::default(),
            offered,
            via: component.clone().filter(|_| !common.direct),
            component,
            transport: common.transport,
            prefer: common.prefer,
            takes: Takes::FILES,
            login: account.login(common),
            output,
        })
    }

    /// Returns the client for a listener that may accept sessions past the broker.
    fn accepting_direct(self, accept_direct: bool) -> Self {
        Self { accept_direct, ..self }
    }

    /// Returns the client for a listener that accepts these sessions.
    fn taking(self, takes: Takes) -> Self {
        Self { takes, ..self }
    }

    /// Returns the error for an address that no session goes to.
    ///
    /// # Errors
    /// Exit status 2 if it is that of a server or of a component. The component would accept a session: it proves our
    /// key, and discards everything.
    fn check_peer(&self, peer: &Jid) -> Result<(), XtlsError> {
        if peer.node().is_some() {
            return Ok(());
        }
        let domain = peer.domain();
        let what = match &self.component {
            Some(component) if component.domain() == domain => "the component itself",
            _ => "a server",
        };
        Err(XtlsError::usage(format!("{peer}: expected a user, found the address of {what}"))
            .hint(format!("name the person, such as bob@{}", self.login.jid.domain())))
    }

    /// Logs in.
    async fn connect(&self) -> Result<(Endpoint, Incoming), XtlsError> {
        let connected = self.builder().login(&self.login).await?;
        self.warn_of_the_path();
        Ok(connected)
    }

    /// Logs in to wait for peers: reconnects after a loss, and tells the user.
    async fn connect_to_wait(&self) -> Result<(Endpoint, Incoming), XtlsError> {
        let output = self.output;
        let builder = self.builder().reconnect(move |contact| tell(output, contact));
        let connected = builder.login(&self.login).await?;
        self.warn_of_the_path();
        Ok(connected)
    }

    fn warn_of_the_path(&self) {
        if loses_large_packets() {
            self.output.warn(
                "the network loses large packets: smaller ones are used (a router with a smaller MTU drops ICMP)",
            );
        }
    }

    fn builder(&self) -> Builder {
        let mut builder = Endpoint::builder(self.credential.clone())
            .policy(Peers {
                dir: self.dir.clone(),
                accept_new_device: self.accept_new_device,
                output: self.output,
            })
            .raw_streams(self.takes.pipes)
            .accept_direct(self.accept_direct);
        if self.takes.files {
            builder = builder.feature(ns::FILE_TRANSFER).feature(ns::HASHES);
        }
        if self.takes.chats {
            builder = builder.feature(ns::XMLSTREAM);
        }
        if let Some(prefer) = self.prefer {
            builder = builder.prefer(prefer);
        }
        if let Some(component) = &self.component {
            builder = builder.component(component.clone());
        }
        if let Some(via) = &self.via {
            builder = builder.via(via.clone());
        }
        if let Some(transport) = self.transport {
            builder = builder.transport(transport);
        }
        if let Some(print) = &self.offered {
            builder = builder.offer(print.clone());
        }
        builder
    }
}

/// Tells the user about a change of the connection to the server.
fn tell(output: Output, contact: &Contact) {
    match contact {
        Contact::Lost { reason } => output.event(
            &json!({"event": "disconnected", "reason": reason}),
            &format!("lost the connection to the XMPP server ({reason}); connecting again"),
        ),
        Contact::Back { jid, resumed } => output.event(
            &json!({"event": "connected", "jid": jid.as_str(), "resumed": resumed}),
            &format!("connected to the XMPP server again, as {jid}"),
        ),
        // Events of a later version of the library.
        _ => {}
    }
}

/// Runs a command; returns the exit status.
pub async fn run(cli: Cli) -> u8 {
    let piped = matches!(cli.command, Command::Pipe { .. });
    let listens =
        matches!(cli.command, Command::Listen { .. } | Command::Pipe { listen: true, .. });
    let sends = matches!(cli.command, Command::Send { .. });
    // An interrupted chat closes itself.
    let chats = matches!(cli.command, Command::Chat { .. });
    let output = Output { json: cli.common.json, quiet: cli.common.quiet, piped };
    let done = tokio::select! {
        // This comes first, so that the signals are caught from the beginning.
        biased;
        () = interrupted(), if !listens && !chats => {
            let error = XtlsError::failed("interrupted");
            Err(if sends { error.hint("run the same command again: it goes on where it stopped") } else { error })
        }
        done = command(cli.common, cli.command, output) => done,
    };
    if done.is_err() {
        // A session that was left has queued its session-terminate.
        tokio::time::sleep(FLUSH).await;
    }
    match done {
        Ok(()) => 0,
        Err(error) => {
            output.error(&error);
            error.code
        }
    }
}

/// Waits for the user's Ctrl-C, or for another request to end the program.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut signals: Vec<_> =
        [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
            .into_iter()
            .filter_map(|kind| signal(kind).ok())
            .collect();
    let any = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
    futures::future::select_all(any).await;
}

async fn command(common: Common, command: Command, output: Output) -> Result<(), XtlsError> {
    match command {
        Command::Login { ref jid, ref server, ref password_file } => {
            login::login(&common, jid, server.clone(), password_file.as_deref(), output).await
        }
        Command::Keygen { openpgp: false, algorithm, .. } => {
            login::keygen(&common, algorithm, output)
        }
        Command::Keygen { import, key_version, .. } => {
            login::keygen_openpgp(&common, import.as_deref(), key_version == "6", output)
        }
        Command::Prove => registry::prove(&common, output).await,
        Command::Trust { command } => peers::trust(&common, command, output),
        Command::Keys { jid } => {
            let mut keys = Element::bare("keys", ns::KEYS);
            if let Some(jid) = jid {
                xml::set(&mut keys, "jid", jid.as_str());
            }
            registry::registry(&common, RequestKind::Get, keys, output).await
        }
        Command::Register { label } => {
            let account = Account::load(common.account.as_ref())?;
            let own = registry::OwnKey::load(common.method, &account)?;
            let add = own.add_request(&label);
            registry::registry(&common, RequestKind::Set, add, output).await
        }
        Command::Revoke { id, reason } => {
            let revoke = xml::element("revoke", ns::KEYS, &[("id", &id), ("reason", &reason)]);
            registry::registry(&common, RequestKind::Set, revoke, output).await
        }
        Command::Listen { out, max_size, once, accept, accept_direct, chat, pipe, lan } => {
            if !out.is_dir() {
                return Err(XtlsError::usage(format!("{}: not a directory", out.display())));
            }
            let inbox = Inbox::new(out, max_size);
            if lan.lan {
                return Lan::load(&common, lan, output)?.listen(inbox, once, accept).await;
            }
            let client = Client::load(&common, output)?.accepting_direct(accept_direct);
            let kinds = Kinds {
                files: Some(inbox),
                pipes: pipe.map(Ends::Command),
                chats: chat.then(|| Desk::new(output)),
            };
            listen::listen(Listen::new(client, kinds, once, accept)).await
        }
        Command::Pipe { listen: true, accept_direct, .. } => {
            let client = Client::load(&common, output)?.accepting_direct(accept_direct);
            let kinds = Kinds { pipes: Some(Ends::Standard), ..Kinds::default() };
            listen::listen(Listen::new(client, kinds, true, Vec::new())).await
        }
        Command::Pipe { jid: Some(jid), .. } => {
            let client = Client::load(&common, output)?.taking(Takes::PIPES);
            pipe_to(&client, &jid).await
        }
        Command::Pipe { .. } => Err(XtlsError::usage("expected a JID or --listen")),
        Command::Chat { jid: Some(jid), lan, .. } if lan.lan => {
            Lan::load(&common, lan, output)?.chat(&jid).await
        }
        Command::Chat { accept, lan, .. } if lan.lan => {
            Lan::load(&common, lan, output)?.wait_for_chat(&accept).await
        }
        Command::Chat { jid: Some(jid), .. } => {
            let client = Client::load(&common, output)?.taking(Takes::CHATS);
            client.check_peer(&jid)?;
            chat::call(&client, &jid).await
        }
        Command::Chat { accept, accept_direct, .. } => {
            let client =
                Client::load(&common, output)?.accepting_direct(accept_direct).taking(Takes::CHATS);
            chat::listen(client, &accept).await
        }
        Command::Send { jid, files, lan } if lan.lan => {
            Lan::load(&common, lan, output)?.send(&jid, files).await
        }
        Command::Send { jid, files, .. } => {
            let client = Client::load(&common, output)?;
            client.check_peer(&jid)?;
            send::send(&client, &jid, files).await
        }
    }
}

/// Connects standard input and output to a peer's.
async fn pipe_to(client: &Client, peer: &Jid) -> Result<(), XtlsError> {
    client.check_peer(peer)?;
    let (endpoint, _incoming) = client.connect().await?;
    endpoint.appear(-1).await;
    let done = async {
        let (mut session, stream) = endpoint.initiate(peer, &Application::pipe()).await?;
        client.secured(&mut session, &stream).await?;
        pipe::run(session, stream, Side::Calls, &Ends::Standard, client.output).await
    }
    .await;
    endpoint.close().await;
    done
}
