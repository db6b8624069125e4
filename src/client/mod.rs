//! The `xtls` program: an end-to-end TLS endpoint over XMPP.

pub mod account;
pub mod connection;
mod files;
mod hub;
pub mod output;
mod session;
mod socks5;
pub mod trust;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::{Args, Parser, Subcommand};
use jid::{BareJid, Jid};
use minidom::Element;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub use self::hub::TransportKind;
use self::{
    account::Account,
    connection::ServerTrust,
    files::FileOffer,
    hub::{Hub, condition},
    output::{Output, XtlsError},
    session::Application,
    trust::Trust,
};
use crate::{
    print::{HashKind, Print},
    registry::proof::{self, Nonce},
    tls::identity::Identity,
    xmpp::{iq::Answer, jid::proxied, ns, stanza::Stanza, xml},
};

/// How long queued stanzas may take to go out before the program ends.
const FLUSH: Duration = Duration::from_millis(150);

/// An end-to-end TLS endpoint over XMPP: send and receive files, pipe, manage keys.
#[derive(Debug, Parser)]
#[command(
    name = "xtls",
    version,
    after_help = "Exit status: 0 ok, 1 failed, 2 usage, 3 peer unreachable, 4 the peer's key could not be verified \
                  (nothing was sent), 5 refused by the peer."
)]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

impl Cli {
    /// What to log: warnings, or more with each `-v`.
    pub fn log_filter(&self) -> &'static str {
        match self.common.verbose {
            0 => "error",
            1 => "warn,fingerpost=info",
            _ => "warn,fingerpost=debug",
        }
    }
}

#[derive(Args, Debug)]
struct Common {
    /// Which account, if there are several
    #[arg(long, global = true, value_name = "JID")]
    account: Option<BareJid>,
    /// The component that brokers (default: the account's)
    #[arg(long, global = true, value_name = "COMPONENT")]
    via: Option<BareJid>,
    /// No broker, even if the account has one: the JID must be full
    #[arg(long, global = true, conflicts_with = "via")]
    direct: bool,
    /// The TLS method
    #[arg(long, global = true, default_value = "x509")]
    method: crate::print::Method,
    /// The transport to offer or to accept
    #[arg(long, global = true)]
    transport: Option<TransportKind>,
    /// One JSON object a line on standard output
    #[arg(long, global = true)]
    json: bool,
    /// Only errors
    #[arg(short, long, global = true)]
    quiet: bool,
    /// More log (to standard error)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Authorities to trust for the XMPP server, PEM
    #[arg(long, global = true, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Do not check the XMPP server's certificate
    #[arg(long, global = true)]
    insecure_tls: bool,
    /// For tests: offers this print instead of the own key's
    #[arg(long, global = true, hide = true, value_name = "HEX")]
    offer_print: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Log in and store the account
    Login {
        /// user@domain
        jid: BareJid,
        /// The XMPP server, if not the JID's domain at port 5222
        #[arg(long, value_name = "HOST:PORT")]
        server: Option<String>,
        /// Read the password from the first line of a file
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// List registered keys: one's own, or another user's
    Keys {
        /// Whose
        jid: Option<BareJid>,
    },
    /// Make a key and its certificate
    Keygen {
        /// An OpenPGP key (not in this version)
        #[arg(long)]
        openpgp: bool,
    },
    /// Register the own key at the component
    Register {
        /// A name for it
        #[arg(long, default_value = "xtls")]
        label: String,
    },
    /// Prove to the component's registry that the own key is one's own
    Prove,
    /// Revoke a key, finally
    Revoke {
        /// The key's id, as listed
        id: String,
        /// Why
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Wait for sessions and receive files
    Listen {
        /// Where files land
        #[arg(long, default_value = ".", value_name = "DIR")]
        out: PathBuf,
        /// End after one session
        #[arg(long)]
        once: bool,
        /// Take sessions from these users only
        #[arg(long, value_name = "JID", num_args = 1..)]
        accept: Vec<BareJid>,
    },
    /// Send files
    Send {
        /// To whom
        jid: Jid,
        /// What
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Join standard input and output to a peer's
    Pipe {
        /// To whom
        #[arg(required_unless_present = "listen")]
        jid: Option<Jid>,
        /// Wait for a peer instead
        #[arg(long, conflicts_with = "jid")]
        listen: bool,
    },
    /// Chat (not in this version)
    Chat {
        /// With whom
        jid: Jid,
    },
    /// Known peers and their keys
    Trust {
        #[command(subcommand)]
        command: TrustCommand,
    },
}

#[derive(Debug, Subcommand)]
enum TrustCommand {
    /// List known peers
    List,
    /// Trust this key of a peer
    Set {
        /// Whose
        jid: BareJid,
        /// The SHA-256 print of its certificate
        print: String,
    },
    /// Forget a peer: its next key is taken on first use
    Forget {
        /// Whom
        jid: BareJid,
    },
}

/// What a session needs to know of its user.
#[derive(Debug)]
struct Client {
    account: Account,
    dir: PathBuf,
    identity: Identity,
    offered: Option<Print>,
    /// The broker, if sessions go through it.
    via: Option<BareJid>,
    /// The component, whether or not it brokers.
    component: Option<BareJid>,
    transport: Option<TransportKind>,
    trust: ServerTrust,
    output: Output,
}

impl Client {
    /// The print we offer as ours.
    fn offered_print(&self) -> Print {
        self.offered.clone().unwrap_or_else(|| self.identity.print())
    }

    async fn connect(&self, only: Option<TransportKind>) -> Result<Online, XtlsError> {
        let connection = connection::login(&self.account, &self.trust).await?;
        let (hub, initiates, task) = Hub::start(connection, only);
        Ok(Online { hub, initiates, task })
    }
}

/// A connected client.
struct Online {
    hub: Hub,
    initiates: tokio::sync::mpsc::Receiver<Stanza>,
    task: tokio::task::JoinHandle<()>,
}

impl Online {
    /// Lets what is queued go out, then ends.
    async fn close(self) {
        let Self { hub, initiates, task } = self;
        drop(hub);
        drop(initiates);
        tokio::time::sleep(FLUSH).await;
        task.abort();
    }
}

/// Runs a command; gives the exit status.
pub async fn run(cli: Cli) -> u8 {
    let piped = matches!(cli.command, Command::Pipe { .. });
    let output = Output { json: cli.common.json, quiet: cli.common.quiet, piped };
    let done = tokio::select! {
        done = command(cli.common, cli.command, output) => done,
        _ = tokio::signal::ctrl_c() => Err(XtlsError::failed("interrupted")),
    };
    if done.is_err() {
        // A session that was left has queued its goodbye.
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

async fn command(common: Common, command: Command, output: Output) -> Result<(), XtlsError> {
    if common.method != crate::print::Method::X509 {
        return Err(XtlsError::usage(format!(
            "method {} is not in this version: use x509",
            common.method
        )));
    }
    match command {
        Command::Login { ref jid, ref server, ref password_file } => {
            login(&common, jid, server.clone(), password_file.as_deref(), output).await
        }
        Command::Keygen { openpgp: false } => keygen(&common, output),
        Command::Prove => prove(&common, output).await,
        Command::Keygen { .. } | Command::Chat { .. } => {
            Err(XtlsError::usage("this command is not in this version"))
        }
        Command::Trust { command } => trust(&common, command, output),
        Command::Keys { jid } => {
            let mut keys = Element::bare("keys", ns::KEYS);
            if let Some(jid) = jid {
                xml::set(&mut keys, "jid", jid.as_str());
            }
            registry(&common, "get", keys, output).await
        }
        Command::Register { label } => {
            let account = Account::load(common.account.as_ref())?;
            let identity = own_identity(&account)?;
            registry(&common, "set", add_request(&identity, &label), output).await
        }
        Command::Revoke { id, reason } => {
            let revoke = xml::element("revoke", ns::KEYS, &[("id", &id), ("reason", &reason)]);
            registry(&common, "set", revoke, output).await
        }
        Command::Listen { out, once, accept } => {
            if !out.is_dir() {
                return Err(XtlsError::usage(format!("{} is no folder", out.display())));
            }
            let client = client(common, output)?;
            listen(&client, Some(&out), once, &accept).await
        }
        Command::Pipe { listen: true, .. } => {
            let client = client(common, output)?;
            listen(&client, None, true, &[]).await
        }
        Command::Pipe { jid: Some(jid), .. } => {
            let client = client(common, output)?;
            let peer = client.peer(&jid)?;
            let online = client.connect(None).await?;
            presence(&client, &online.hub, Some(-1)).await;
            let done = async {
                let (mut session, stream) =
                    session::initiate(&client, &online.hub, peer, Application::Pipe).await?;
                let done = session.during(pipe(stream)).await;
                session
                    .terminate(if done.is_ok() { "success" } else { "connectivity-error" }, "")
                    .await;
                done
            }
            .await;
            online.close().await;
            done
        }
        Command::Pipe { .. } => Err(XtlsError::usage("a JID or --listen was expected")),
        Command::Send { jid, files } => {
            let client = client(common, output)?;
            let peer = client.peer(&jid)?;
            let offers: Vec<_> = files
                .into_iter()
                .map(|path| FileOffer::of(&path).map(|offer| (path, offer)))
                .collect::<Result<_, _>>()?;
            let online = client.connect(None).await?;
            presence(&client, &online.hub, Some(-1)).await;
            let mut done = Ok(());
            for (path, offer) in &offers {
                done = send(&client, &online.hub, &peer, path, offer).await;
                if done.is_err() {
                    break;
                }
            }
            online.close().await;
            done
        }
    }
}

impl Client {
    /// The address to start a session to.
    fn peer(&self, jid: &Jid) -> Result<Jid, XtlsError> {
        let Some(via) = &self.via else {
            if jid.resource().is_none() {
                return Err(XtlsError::usage(format!(
                    "without a broker the JID must be full, such as {jid}/laptop: xtls listen shows it; \
                     or name a component with --via"
                )));
            }
            return Ok(jid.clone());
        };
        if jid.domain() == via.domain() {
            return Ok(jid.clone());
        }
        proxied(jid, via)
            .ok_or_else(|| XtlsError::usage(format!("{jid} is too long to be proxied")))
    }
}

fn own_identity(account: &Account) -> Result<Identity, XtlsError> {
    let dir = account::folder(&account.jid)?;
    Identity::load(&dir)
        .map_err(|error| XtlsError::failed(error.to_string()))?
        .ok_or_else(|| XtlsError::usage("there is no key yet: run xtls keygen first"))
}

fn client(common: Common, output: Output) -> Result<Client, XtlsError> {
    let account = Account::load(common.account.as_ref())?;
    let offered = common
        .offer_print
        .as_deref()
        .map(|text| Print::parse(text, Some(HashKind::Sha256)))
        .transpose()
        .map_err(|error| XtlsError::usage(error.to_string()))?;
    let component = common.via.clone().or_else(|| account.via.clone());
    Ok(Client {
        dir: account::folder(&account.jid)?,
        identity: own_identity(&account)?,
        offered,
        via: component.clone().filter(|_| !common.direct),
        component,
        transport: common.transport,
        trust: server_trust(&common, &account),
        account,
        output,
    })
}

fn server_trust(common: &Common, account: &Account) -> ServerTrust {
    ServerTrust {
        ca_file: common.ca_file.clone().or_else(|| account.ca_file.clone()),
        insecure: common.insecure_tls,
    }
}

async fn login(
    common: &Common,
    jid: &BareJid,
    server: Option<String>,
    password_file: Option<&Path>,
    output: Output,
) -> Result<(), XtlsError> {
    if jid.node().is_none() {
        return Err(XtlsError::usage("the JID must be user@domain"));
    }
    let password = match (password_file, std::env::var("XTLS_PASSWORD")) {
        (Some(file), _) => std::fs::read_to_string(file)
            .map_err(|error| XtlsError::usage(format!("{}: {error}", file.display())))?
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned(),
        (None, Ok(password)) => password,
        (None, Err(_)) => rpassword::prompt_password(format!("Password of {jid}: "))?,
    };
    let ca_file = common.ca_file.clone().map(|file| file.canonicalize().unwrap_or(file));
    let account = Account { jid: jid.clone(), password, server, via: common.via.clone(), ca_file };
    let connection = connection::login(&account, &server_trust(common, &account)).await?;
    drop(connection);
    account.store()?;
    output.event(&json!({"event": "login", "jid": jid.as_str()}), &format!("logged in as {jid}"));
    Ok(())
}

fn keygen(common: &Common, output: Output) -> Result<(), XtlsError> {
    let account = Account::load(common.account.as_ref())?;
    let dir = account::folder(&account.jid)?;
    let bad = |error: crate::tls::identity::IdentityError| XtlsError::failed(error.to_string());
    if Identity::load(&dir).map_err(bad)?.is_some() {
        return Err(XtlsError::usage(format!(
            "there is a key already in {}: move it away to make another",
            dir.display()
        )));
    }
    let identity = Identity::generate(&account.jid).map_err(bad)?;
    identity.store(&dir).map_err(bad)?;
    let print = identity.print().to_string();
    output.data(&json!({"event": "keygen", "method": "x509", "print": print}), &print);
    Ok(())
}

fn trust(common: &Common, command: TrustCommand, output: Output) -> Result<(), XtlsError> {
    let account = Account::load(common.account.as_ref())?;
    let mut trust = Trust::load(&account::folder(&account.jid)?)?;
    match command {
        TrustCommand::List => {
            for (peer, print) in trust.peers() {
                output.data(&json!({"jid": peer, "print": print}), &format!("{peer}  {print}"));
            }
            Ok(())
        }
        TrustCommand::Set { jid, print } => {
            let print = Print::parse(&print, Some(HashKind::Sha256))
                .map_err(|error| XtlsError::usage(error.to_string()))?;
            trust.set(&jid, &print)
        }
        TrustCommand::Forget { jid } => {
            if trust.forget(&jid)? {
                Ok(())
            } else {
                Err(XtlsError::failed(format!("{jid} is not known")))
            }
        }
    }
}

/// The registry of a component, to be asked.
struct Registry {
    online: Online,
    component: BareJid,
}

impl Registry {
    async fn connect(common: &Common) -> Result<Self, XtlsError> {
        let account = Account::load(common.account.as_ref())?;
        let component = common.via.clone().or_else(|| account.via.clone());
        let component = component
            .ok_or_else(|| XtlsError::usage("name the component with --via (or at xtls login)"))?;
        let connection = connection::login(&account, &server_trust(common, &account)).await?;
        let (hub, initiates, task) = Hub::start(connection, None);
        Ok(Self { online: Online { hub, initiates, task }, component })
    }

    async fn ask(&self, type_: &str, payload: Element) -> Result<Option<Element>, XtlsError> {
        let component = &self.component;
        let to = Jid::from(component.clone());
        match self.online.hub.request(type_, &to, payload).await {
            Answer::Result(payload) => Ok(payload),
            Answer::Error(error) => {
                Err(XtlsError::refused(format!("{component}: {}", condition(&error))))
            }
            Answer::Timeout => Err(XtlsError::unreachable(format!("{component} did not answer"))),
        }
    }
}

/// Asks the registry and shows the keys in its answer.
async fn registry(
    common: &Common,
    type_: &str,
    payload: Element,
    output: Output,
) -> Result<(), XtlsError> {
    let registry = Registry::connect(common).await?;
    let answer = registry.ask(type_, payload).await;
    registry.online.close().await;
    show_keys(answer?, output);
    Ok(())
}

/// Registers the own key, if it is not, and proves it by a signature over the registry's challenge.
async fn prove(common: &Common, output: Output) -> Result<(), XtlsError> {
    let account = Account::load(common.account.as_ref())?;
    let identity = own_identity(&account)?;
    let registry = Registry::connect(common).await?;
    let proven = async {
        let added = registry.ask("set", add_request(&identity, "xtls")).await?;
        let key = added.ok_or_else(|| XtlsError::failed("the registry's answer is empty"))?;
        let id = key.attr("id").unwrap_or_default().to_owned();
        let challenge = xml::element("challenge", ns::KEYS, &[("id", &id)]);
        let nonce = registry
            .ask("get", challenge)
            .await?
            .and_then(|challenge| STANDARD.decode(challenge.attr("nonce")?).ok())
            .and_then(|nonce| Nonce::try_from(nonce).ok())
            .ok_or_else(|| XtlsError::failed("the registry's challenge is none"))?;
        let owner = registry.online.hub.jid.to_bare();
        let message = proof::message(&registry.component, &owner, &nonce);
        let signature = identity.sign(&message).ok_or_else(|| {
            XtlsError::failed("only Ed25519, ECDSA P-256 and RSA keys can be proven")
        })?;
        let mut prove = xml::element("prove", ns::KEYS, &[("id", &id)]);
        let mut element = Element::bare("signature", ns::KEYS);
        element.append_text(STANDARD.encode(signature));
        prove.append_child(element);
        registry.ask("set", prove).await
    }
    .await;
    registry.online.close().await;
    show_keys(proven?, output);
    Ok(())
}

/// The request that registers the own certificate.
fn add_request(identity: &Identity, label: &str) -> Element {
    let mut key = xml::element("key", ns::KEYS, &[("method", "x509"), ("label", label)]);
    let mut material = Element::bare("material", ns::KEYS);
    material.append_text(STANDARD.encode(identity.certificate.as_ref()));
    key.append_child(material);
    let mut add = Element::bare("add", ns::KEYS);
    add.append_child(key);
    add
}

/// Shows the keys in an answer of the registry.
fn show_keys(payload: Option<Element>, output: Output) {
    let Some(payload) = payload else { return };
    let keys: Vec<&Element> =
        if payload.name() == "key" { vec![&payload] } else { payload.children().collect() };
    for key in keys {
        let get = |name| key.attr(name).unwrap_or_default();
        let prints: Vec<_> = key
            .children()
            .filter(|child| child.name() == "print")
            .map(|print| json!({"hash": print.attr("hash"), "print": print.text()}))
            .collect();
        let lines: Vec<_> = prints
            .iter()
            .map(|print| {
                format!(
                    "\n  {} {}",
                    print["hash"].as_str().unwrap_or_default(),
                    print["print"].as_str().unwrap_or_default()
                )
            })
            .collect();
        output.data(
            &json!({"id": get("id"), "method": get("method"), "state": get("state"),
                    "assurance": get("assurance"), "label": get("label"), "created": get("created"),
                    "prints": prints}),
            &format!(
                "{} {} {} {} {}{}",
                get("id"),
                get("method"),
                get("state"),
                get("assurance"),
                get("label"),
                lines.concat()
            ),
        );
    }
}

/// Directed presence to the component, so that it learns when this program dies; with a priority of 0 or more users
/// may start sessions to it. `None`: it leaves.
async fn presence(client: &Client, hub: &Hub, priority: Option<i8>) {
    let Some(component) = &client.component else { return };
    let mut presence = xml::element("presence", ns::CLIENT, &[("to", component.as_str())]);
    match priority {
        None => xml::set(&mut presence, "type", "unavailable"),
        Some(number) => {
            let mut priority = Element::bare("priority", ns::CLIENT);
            priority.append_text(number.to_string());
            presence.append_child(priority);
        }
    }
    hub.send(presence).await;
}

/// Waits for sessions: files into `out`, or without it one pipe.
async fn listen(
    client: &Client,
    out: Option<&Path>,
    once: bool,
    accept: &[BareJid],
) -> Result<(), XtlsError> {
    let mut online = client.connect(client.transport).await?;
    presence(client, &online.hub, Some(1)).await;
    // The server has handled the presence when it answers what came after it.
    if let Ok(server) = Jid::new(online.hub.jid.domain().as_str()) {
        let _ = online.hub.request("get", &server, Element::bare("ping", ns::PING)).await;
    }
    client.output.event(
        &json!({"event": "listening", "jid": online.hub.jid.as_str()}),
        &format!("listening as {}", online.hub.jid),
    );
    let mut done = Ok(());
    loop {
        let initiate = tokio::select! {
            initiate = online.initiates.recv() => initiate,
            _ = &mut online.task => None,
            _ = tokio::signal::ctrl_c() => break,
        };
        let Some(initiate) = initiate else {
            done = Err(XtlsError::failed("the connection to the XMPP server is lost"));
            break;
        };
        let session = serve(client, &online.hub, initiate, out, accept).await;
        if once {
            done = session;
            break;
        }
        if let Err(error) = session {
            client.output.error(&error);
        }
    }
    presence(client, &online.hub, None).await;
    online.close().await;
    done
}

async fn serve(
    client: &Client,
    hub: &Hub,
    initiate: Stanza,
    out: Option<&Path>,
    accept: &[BareJid],
) -> Result<(), XtlsError> {
    let admit = |user: &BareJid, application: &Application| {
        if !accept.is_empty() && !accept.contains(user) {
            return Err(XtlsError::refused(format!("{user} is not among those to accept")));
        }
        match (out, application) {
            (Some(_), Application::File(file)) => FileOffer::parse(file).map(|_| ()),
            (None, Application::Pipe) => Ok(()),
            (Some(_), Application::Pipe) => Err(XtlsError::refused(format!(
                "{user} wants a pipe: run xtls pipe --listen for that"
            ))),
            (None, Application::File(_)) => Err(XtlsError::refused(format!(
                "{user} wants to send a file: run xtls listen for that"
            ))),
        }
    };
    let (mut session, mut stream, application) =
        session::respond(client, hub, initiate, admit).await?;
    let done = match (out, application) {
        (Some(dir), Application::File(file)) => {
            let offer = FileOffer::parse(&file)?;
            session
                .during(files::receive(&mut stream, dir, &offer, client.output))
                .await
                .map(|(done, path)| done.report(client.output, &path))
        }
        _ => session.during(pipe(stream)).await,
    };
    let reason = if done.is_ok() { "success" } else { "media-error" };
    session.terminate(reason, done.as_ref().err().map_or("", |error| error.text.as_str())).await;
    done
}

async fn send(
    client: &Client,
    hub: &Hub,
    peer: &Jid,
    path: &Path,
    offer: &FileOffer,
) -> Result<(), XtlsError> {
    let application = Application::File(offer.to_element());
    let (mut session, mut stream) =
        session::initiate(client, hub, peer.clone(), application).await?;
    let sent = session.during(files::send(&mut stream, path, offer, client.output)).await;
    let done = match sent {
        Ok(done) => done,
        Err(error) => {
            session.terminate("failed-application", &error.text).await;
            return Err(error);
        }
    };
    // The peer says success when it has the whole file and its hash is right.
    session.terminated().await?;
    done.report(client.output, path);
    Ok(())
}

/// Joins standard input and output to the stream, each direction to its own end.
async fn pipe(stream: session::Stream) -> Result<(), XtlsError> {
    let (mut read, mut write) = tokio::io::split(stream);
    let outgoing = async {
        let mut stdin = tokio::io::stdin();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let n = stdin.read(&mut buffer).await?;
            if n == 0 {
                break;
            }
            write.write_all(&buffer[..n]).await?;
            write.flush().await?;
        }
        write.shutdown().await
    };
    let incoming = async {
        let mut stdout = tokio::io::stdout();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let n = match read.read(&mut buffer).await {
                Ok(n) => n,
                // A peer that has said all may leave without a close_notify's answer.
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => 0,
                Err(error) => return Err(error),
            };
            if n == 0 {
                return stdout.flush().await;
            }
            stdout.write_all(&buffer[..n]).await?;
            stdout.flush().await?;
        }
    };
    tokio::try_join!(outgoing, incoming)?;
    Ok(())
}
